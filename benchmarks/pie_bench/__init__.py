"""PIE-Bench (arXiv 2310.01506): 700 images to edit, with instructions, prompts and masks.

Reference: github.com/cure-lab/PnPInversion at 07f97f448150e2ca220bebd54c8f687c5c50c67a. The data
are handed out through a form and have no stated licence, so that nothing of them is shipped: the
user names the folder. Protocols and metrics: docs/benchmarks.md.
"""
