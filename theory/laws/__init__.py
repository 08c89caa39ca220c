"""Which laws hold exactly? One module per family of tags; `all_laws` is the registry."""
