"""Named studies of the questions that the source of this project leaves open, answered by training."""
