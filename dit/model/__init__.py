"""What is the network? The DiT, rectified flow, and the published weights."""
