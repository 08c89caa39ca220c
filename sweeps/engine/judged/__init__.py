"""Studies whose networks are judged on held-out images and by their samples."""
