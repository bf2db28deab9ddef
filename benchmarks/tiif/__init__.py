"""TIIF-Bench: prompts in two lengths, judged by yes/no questions about every image.

Reference: github.com/A113N-W3I/TIIF-Bench at 3aae7504d2546516eaec2fea82fde9ae445dfea3 (arXiv
2506.02161). Reading replies, adding up scores and measuring rendered text are pure functions, so
they serve any judge and any prompts.
"""
