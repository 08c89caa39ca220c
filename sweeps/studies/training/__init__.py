"""What studies of open questions say: mixers in training, long schedules, averages of the weights."""
