"""Which laws hold exactly? One file per family of tags; `all_laws` is the registry."""
