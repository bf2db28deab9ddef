"""Judges: they look at images, for a benchmark's score or for a method's decisions."""
