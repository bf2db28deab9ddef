"""COCO captions: what acceleration papers report beside speed, and the distance to plain sampling.

Protocols, caption lists and the numbers that papers printed: docs/benchmarks.md.
"""
