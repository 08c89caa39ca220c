"""Rows of sweeps over synthetic stacks that need the theory of their exponents."""
