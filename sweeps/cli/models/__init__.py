"""Commands that look at a model of the user's own."""
