"""Comparisons with outputs of the original implementations, kept as fixtures."""
