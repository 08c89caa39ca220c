"""What does each figure show? One module per figure; none of them fits anything."""
