"""T2I-CompBench++ (arXiv 2307.06350, TPAMI 2025): eight categories of compositional prompts.

Reference: github.com/Karine-Huang/T2I-CompBench at 1b7094991a57f3c22abdd4f6e8ba6c1a15517073. The
rules are pure functions over plain values, so they serve any evaluator: the official networks,
substitutes for them, and the embedded model's detector.
"""
