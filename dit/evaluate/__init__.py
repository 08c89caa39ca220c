"""What has it learned? Sampling, FID/KID/IS, the timestep probe and spectral scores."""
