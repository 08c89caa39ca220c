"""Figures of the event: what happens around the onset, step by step."""
