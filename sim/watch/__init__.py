"""Watching a model in any training script: lazy discovery, measured steps, alarms, a run store."""
