"""Prompts of a user's own: drawn, counted, shown, and scored if a reward is chosen as judge."""

from benchmarks.prompts.benchmark import OwnPrompts as OwnPrompts
