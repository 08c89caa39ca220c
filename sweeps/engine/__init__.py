"""How does a question become a store? Plans, their cells, executors and resuming."""
