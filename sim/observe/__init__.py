"""What is measured? Observables, the probe that records them, and the functional step."""
