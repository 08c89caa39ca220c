"""What is a training run? Its architecture, training options and presets, without torch."""
