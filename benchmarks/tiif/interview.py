"""Keep the name by which configurations of older runs know `VQAJudge`."""

from benchmarks.tiif.vqa_model import VQAJudge as Interview

__all__ = ["Interview"]
