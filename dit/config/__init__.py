"""What is a run? Architecture, training and presets; no torch."""
