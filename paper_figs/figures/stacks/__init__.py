"""Figures of untrained stacks, one per module."""
