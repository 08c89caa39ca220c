"""Synthetic stacks, and everything measured on them."""
