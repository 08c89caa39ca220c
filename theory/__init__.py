"""What is claimed: laws with machine-checked proofs, the mean field, and the onset; no torch."""
