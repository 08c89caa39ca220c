"""Named sweeps over inputs whose tokens have structure."""
