"""What is the network? Blocks, merges, mixers and segments, the same for stacks and the DiT."""
