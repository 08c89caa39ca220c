"""Named sweeps over inputs whose tokens have structure, and over long sequences."""
