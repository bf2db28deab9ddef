"""GenEval (arXiv 2310.11513): 553 prompts of six tasks, judged by an object detector and by CLIP.

Reference: github.com/djghosh13/geneval at af4902f24d3ca90ebbb446dd9891a59e0f82725f. The rules
(prompts, verdict, summary) are pure functions over plain values, so they serve any detector: the
official one and the embedded model's.
"""

from benchmarks.geneval.benchmark import GenEval as GenEval
