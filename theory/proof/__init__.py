"""How is a claim proved for every size? Index sums, matrix words, projectors, and the `Law` they prove."""
