"""Other merges put into the blocks of any transformer."""
