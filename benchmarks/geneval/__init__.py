"""GenEval's rules: what its prompt files say, when an image is correct, and how images add up to a score.

Reference: github.com/djghosh13/geneval at af4902f24d3ca90ebbb446dd9891a59e0f82725f (arXiv 2310.11513). The rules are
pure functions over plain values, so they serve any detector: the official one and the embedded model's own.
"""
