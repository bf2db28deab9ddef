"""The reference images of COCO: a user's photographs, or the moments of a set in a file.

Photographs have licences of their own: none is shipped, shown or downloaded. Their features are
kept in the user's cache, by extractor, crop, and the names and sizes of all files.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.images import read_images
from harness.download import cache_folder, file_sha256
from harness.judges.features import Extractor
from harness.records import UserError, digest, dump, one_line
from harness.results.stats.distances import Moments
from harness.results.stats.set_metrics import Reference

log = logging.getLogger("harness")

BATCH = 64
"""Photographs read and described at a time."""
SYMMETRY = 1e-6
"""How far a covariance may be from its transpose, and its eigenvalues below 0, as a share."""
PHOTOGRAPHS = "photos-"
"""How the ids of sets of photographs begin."""
FOLDERS = ("val2017", ".")
"""Where photographs lie below a folder of COCO: as unpacked, or flat."""


def has_photographs(folder: Path) -> bool:
    """Tell whether a folder has any photograph where they are looked for."""
    return any(next((folder / below).glob("*.jpg"), None) is not None for below in FOLDERS)


@dataclass(frozen=True)
class Photographs:
    """The photographs of images, by a user's folder. Their names and sizes name them."""

    files: tuple[Path, ...]
    prepare: Callable[[np.ndarray], np.ndarray]
    crop: str
    """Name of what `prepare` does."""

    @classmethod
    def find(
        cls,
        folder: Path,
        images: Sequence[int],
        prepare: Callable[[np.ndarray], np.ndarray],
        crop: str,
    ) -> Photographs:
        """Find a photograph of every image below a folder.

        Raises UserError where one is missing, empty, or a link that leads out of the folder.
        """
        found = []
        lost = []
        for image in images:
            names = [folder / below / f"{image:012d}.jpg" for below in FOLDERS]
            file = next((path for path in names if path.is_file()), None)
            is_inside = file is not None and file.resolve().is_relative_to(folder.resolve())
            if file is None or not is_inside or not file.stat().st_size:
                lost.append(f"{image:012d}.jpg")
            else:
                found.append(file)
        if lost:
            raise UserError(
                f"{folder}: {len(found):,} of {len(images):,} photographs; missing, empty or "
                f"linked from outside: {', '.join(lost[:5])}{', ...' if lost[5:] else ''}. A "
                "distance to fewer is another one: complete the folder (val2017/), or leave "
                "benchmark.reference out"
            )
        return cls(tuple(found), prepare, crop)

    @property
    def id(self) -> str:
        """Name them by their names and sizes, and by what is done to them."""
        listed = sorted([file.name, file.stat().st_size] for file in self.files)
        return f"{PHOTOGRAPHS}{digest(dump([self.crop, listed]).encode(), 8)}"

    def describe(self, extractor: Extractor) -> Reference:
        """Describe them, or read what was kept of them. Raises UserError for unreadable ones."""
        kept = cache_folder() / "coco" / f"{self.id}-{extractor.identity}.npz"
        if kept.is_file():
            reference = read_moments(kept, extractor, self.crop)
            if reference.id == self.id:
                return reference
        log.info("describing %d photographs by %s, once", len(self.files), extractor.identity)
        features = []
        for first in range(0, len(self.files), BATCH):
            some = self.files[first : first + BATCH]
            pictures = []
            for file, picture in zip(some, read_images(some), strict=True):
                if isinstance(picture, str):
                    raise UserError(f"{file.parent}: {picture}: a distance to fewer is another one")
                pictures.append(self.prepare(picture))
            features.append(extractor.features(pictures))
        reference = Reference.of_features(self.id, np.concatenate(features))
        write_reference(kept, reference, extractor, self.crop)
        return reference


def write_reference(file: Path, reference: Reference, extractor: Extractor, crop: str) -> None:
    """Write a reference as a file that `read_moments` reads; it appears at once and whole."""
    assert reference.features_MD is not None
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.part.npz")
    np.savez(
        temporary,
        mu=reference.moments.mean,
        sigma=reference.moments.covariance,
        features=reference.features_MD.astype(np.float32),
        n=np.int64(reference.count or 0),
        extractor=np.str_(extractor.identity),
        crop=np.str_(crop),
        images_sha=np.str_(reference.id),
    )
    temporary.replace(file)


def name_moments(file: Path) -> str:
    """Name a file of moments by its content."""
    return f"npz-{file_sha256(file)[:8]}"


def read_moments(file: Path, extractor: Extractor, crop: str) -> Reference:
    """Read the moments of a reference, as pytorch-fid and MLPerf write them, or as we do.

    `mu` [D], `sigma` [D, D]; optional `features` [N, D], `n`, `extractor`, `crop`, `images_sha`.
    Raises UserError for arrays of other shapes or kinds, and for those of another extractor.
    """
    arrays = _read_arrays(file)
    for key in ("mu", "sigma"):
        if key not in arrays:
            raise UserError(f"{file}: it has no array {key!r}: expected mu and sigma")
    dim = extractor.dim
    mean_D = _expect_floats(file, "mu", arrays["mu"], (dim,))
    covariance_DD = _expect_floats(file, "sigma", arrays["sigma"], (dim, dim))
    _expect_covariance(file, covariance_DD)
    for key, mine in (("extractor", extractor.identity), ("crop", crop)):
        said = str(arrays[key]) if key in arrays else mine
        if said != mine:
            raise UserError(f"{file}: its {key} is {said}, this protocol's {mine}")
    features_ND = None
    if "features" in arrays:
        count = len(arrays["features"]) if arrays["features"].ndim else 0
        features_ND = _expect_floats(file, "features", arrays["features"], (count, dim))
    name = str(arrays["images_sha"]) if "images_sha" in arrays else name_moments(file)
    count_given = int(arrays["n"]) if "n" in arrays and arrays["n"].ndim == 0 else None
    if features_ND is not None:
        count_given = len(features_ND)
    return Reference(name, Moments(mean_D, covariance_DD), count_given or None, features_ND)


def _read_arrays(file: Path) -> dict[str, Any]:
    """Read all arrays of a file without running anything in it."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise UserError(f"{file}: a single array: expected mu and sigma in an .npz")
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: cannot be read ({one_line(error)[:200]})") from None


def _expect_floats(file: Path, key: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array as float64. Raises UserError for another shape, kind, or no finite number."""
    if array.shape != shape or array.dtype.kind not in "fiu":
        raise UserError(
            f"{file}: {key} is {array.dtype} {list(array.shape)}: expected {list(shape)}"
        )
    if not np.isfinite(array).all():
        raise UserError(f"{file}: {key} has numbers that are not finite")
    return array.astype(np.float64)


def _expect_covariance(file: Path, covariance_DD: np.ndarray) -> None:
    """Raise UserError unless a matrix is symmetric and has no negative eigenvalue."""
    scale = max(float(np.abs(covariance_DD).max()), 1e-300)
    if np.abs(covariance_DD - covariance_DD.T).max() > SYMMETRY * scale:
        raise UserError(f"{file}: sigma is not symmetric")
    least = float(np.linalg.eigvalsh(covariance_DD)[0])
    if least < -SYMMETRY * scale:
        raise UserError(f"{file}: sigma has a negative eigenvalue, {least:.3g}")
