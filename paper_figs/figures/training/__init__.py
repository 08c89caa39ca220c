"""Figures of what training shows about questions that the source of this project leaves open."""
