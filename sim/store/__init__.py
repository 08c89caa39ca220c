"""Where do results live? Zarr stores of sweeps and runs, written crash-safe."""
