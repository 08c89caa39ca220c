"""Asking questions at scale: sweeps, studies, comparison and the command line."""
