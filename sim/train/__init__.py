"""How are many small runs trained at once? Stacked optimisers, schedules and the training loop."""
