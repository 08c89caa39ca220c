"""Asking questions at scale: named sweeps, forecasts, comparison and the command line."""
