"""What does the theory claim? Laws with machine-checked proofs, the mean field and the onset; no torch."""
