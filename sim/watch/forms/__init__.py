"""Steps of a watch that a trainer, Lightning or accelerate opens and closes."""
