"""What do the stores say? Rows out of stores: forecasts, comparison, detection."""
