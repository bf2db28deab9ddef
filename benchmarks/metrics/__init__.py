"""Networks that score how well an image shows its text, and how people would like it.

Each is a reward: it serves `metrics=[...]` of any benchmark's run, and as a method's judge. What
they do to pictures and texts is that of the reference's code; weights come from a file, or from the
hub at a pinned revision.
"""
