"""Keep the name by which configurations of older runs know `DetectorVQA`."""

from benchmarks.tiif_pictogram.detector_vqa import DetectorVQA as Eyes

__all__ = ["Eyes"]
