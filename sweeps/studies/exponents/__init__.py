"""Exponents: of untrained stacks over blocks, and of functional steps and rates over depths."""
