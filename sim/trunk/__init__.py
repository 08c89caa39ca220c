"""What is the network? Blocks, merges, mixers and segments, shared by synthetic stacks and the DiT."""
