"""Inputs and sequences with structure: long contexts."""
