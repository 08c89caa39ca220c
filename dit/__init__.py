"""The real thing: a diffusion transformer on the same trunk (not built yet)."""
