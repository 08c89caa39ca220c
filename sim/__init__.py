"""Synthetic stacks, and everything that is measured, on them or on a model in training."""
