"""How is a law proved for every size? Index sums, matrix words, token projectors and the `Law` type."""
