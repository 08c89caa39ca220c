"""What causes the collapse? Changes to gradients, branches, trunk and parameters, with matched controls."""
