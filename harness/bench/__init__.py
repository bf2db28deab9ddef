"""Measure how fast sampler, methods and judges are: `python -m harness.bench NAME`.

Absolute seconds mean something on one machine only, so every number has a partner that was timed
beside it, and is read as a ratio over it.
"""
