"""What is measured? Observables, the probe that takes them, and the functional step."""
