"""Showing: every figure, drawn from stores and laws."""
