"""What is a network made of? Residual writers, blocks, streams and readers, found in the autograd graph."""
