"""`python -m harness.bench NAME`: how fast the sampler, the methods and the judges are, as ratios
of one run.

Absolute seconds mean something on one machine only, so every number here has a partner that was
timed beside it.
"""
