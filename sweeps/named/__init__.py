"""Which questions were asked? Frozen sweeps and studies, declarations only."""
