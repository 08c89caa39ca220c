"""What causes it? Changes to gradients, branches, trunk and parameters, with matched controls."""
