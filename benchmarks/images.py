"""Read and judge image files (harness/models/pictures.py)."""

from harness.models.pictures import judge_each, judge_files, read_images

__all__ = ["judge_each", "judge_files", "read_images"]
