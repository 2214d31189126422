"""Arithmetic that proofs rest on: float32's rounding, eigenvalues, norms of matrices and convolutions."""
