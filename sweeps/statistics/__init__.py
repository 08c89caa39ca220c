"""How sure is a number? Right-censored medians, half rates, cure models and forecast scores."""
