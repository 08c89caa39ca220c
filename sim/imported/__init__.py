"""How is telemetry from elsewhere read? Foreign logs become runs in our own format."""
