"""Figures of long sequences and of inputs with structure."""
