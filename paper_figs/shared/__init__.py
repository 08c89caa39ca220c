"""What do figures share? Style, and the points and runs they draw."""
