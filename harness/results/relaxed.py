"""What a relaxed method may lose against plain sampling, and still count as paying.

The gates of the embedded model (`harness.training.verify`) and the choice of settings
(`harness.tuning`) ask for the same.
"""

MOST_LOSS = {"lantern": 0.08, "lantern_plus": 0.03, "vvs": 0.20, "zipar": 0.04}
"""Method -> points of the score."""
