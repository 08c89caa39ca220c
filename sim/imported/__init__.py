"""How is telemetry from elsewhere read? Foreign logs become runs of our own format."""
