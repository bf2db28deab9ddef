"""`python -m harness.distance METHOD PLAIN [OTHER_PLAIN]`: are a method's images plain sampling's?

Each is a run folder, or the fingerprint of a run below `--results`; all are of the same prompts. A
method that keeps the model's distribution draws images as far from plain's as another plain run's.
The images of each prompt are exchanged between the two runs at random: p is the share of exchanges
that put them as far apart. Needs no reference images and no judge. Give runs of other seeds: images
drawn from the same noise are no independent draws.

Features that scoring has kept in the run folders (benchmark=coco_pictogram, coco) are taken where
all runs have the same; else, and with --features, the images are described.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from harness.arguments import natural, print_error
from harness.compare import find_run
from harness.judges.features import ClipFeatures, Extractor, PictogramFeatures, read_features
from harness.records import UserError, one_line
from harness.results import stats
from harness.results.labels import label_runs
from harness.results.plain_distance import FEWEST, find_extractor
from harness.results.ranking import is_plain
from harness.results.stats import distances
from harness.results.stats.set_metrics import needs_scaling, scale_features
from harness.runs.folder import FORMATS, UNREADABLE
from harness.runs.read import Run


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the distances; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.distance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("method", help="run folder, METHOD-FINGERPRINT or fingerprint")
    parser.add_argument("plain", help="a run of plain sampling with another seed")
    parser.add_argument(
        "other_plain", nargs="?", help="a second one of a third seed: how far apart equals are"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="where names of runs are looked for"
    )
    parser.add_argument(
        "--features",
        choices=("pictogram", "clip"),
        help="what describes an image: the embedded judge, or OpenAI's CLIP ViT-B/32; by default "
        "what the run folders keep, else the embedded judge",
    )
    parser.add_argument(
        "--weights", default="openai", help="of CLIP: a tag of open_clip, or a file of weights"
    )
    parser.add_argument(
        "--each",
        type=natural,
        metavar="K",
        help="test K images of each prompt by themselves, then the next K: independent "
        "repetitions, whose share below 5 %% is the level of the test for equals, and its power "
        "for others",
    )
    chosen = parser.parse_args(arguments)
    names = [chosen.method, chosen.plain, chosen.other_plain]
    try:
        runs = [find_run(name, chosen.results) for name in names if name]
        expect_same_prompts(runs)
        kept = "" if chosen.features else find_kept(runs)
        extractor: Extractor | str = kept or (
            ClipFeatures(chosen.weights) if chosen.features == "clip" else PictogramFeatures()
        )
        if chosen.each is None:
            print("\n".join(describe_distances(runs, extractor)))
        else:
            print("\n".join(describe_repetitions(runs, extractor, chosen.each)))
    except UserError as error:
        return print_error(error)
    return 0


def expect_same_prompts(runs: Sequence[Run]) -> None:
    """Raise UserError unless the runs are different ones, of one model and the same prompts."""
    if len({run.fingerprint for run in runs}) < len(runs):
        raise UserError("a run stands twice: name different runs")
    first = runs[0]
    for run in runs[1:]:
        if run.protocol.model != first.protocol.model:
            raise UserError(
                f"{run.path} is of {run.protocol.model}, {first.path} of {first.protocol.model}"
            )
        if {key: one.text for key, one in run.prompts.items()} != {
            key: one.text for key, one in first.prompts.items()
        }:
            raise UserError(f"{run.path} and {first.path} have different prompts")
    if len(first.prompts) < FEWEST:
        raise UserError(f"{len(first.prompts)} prompts tell nothing: {FEWEST} at least are needed")


def find_kept(runs: Sequence[Run]) -> str:
    """Return the extractor of which all runs keep all features; "" without one."""
    extractors = {find_extractor(run) for run in runs}
    return extractors.pop() if len(extractors) == 1 else ""


def describe_distances(runs: Sequence[Run], extractor: Extractor | str) -> list[str]:
    """Compare the first run's images with the second's, and a third's with them, in words.

    The name of an extractor stands for the features of it that the run folders keep. Raises
    UserError where images or features are missing or cannot be read.
    """
    keys = _share_keys(runs)
    sets = [_read_features(run, keys, extractor) for run in runs]
    identity = extractor if isinstance(extractor, str) else extractor.identity
    scaled = ""
    is_scaled = needs_scaling(identity)
    if is_scaled:
        of_plain = [found for run, found in zip(runs, sets, strict=True) if is_plain(run)]
        sets = scale_features(sets, by=of_plain or sets[1:])
        scaled = ", scaled to a deviation of 1"

    method, plain = runs[:2]
    prompts = len({prompt for prompt, _ in keys})
    lines = [
        f"{plain.protocol.benchmark} on {plain.protocol.model}, {prompts} prompts, "
        f"{len(keys)} images a run, features {identity}{scaled}"
    ]
    group_N = _number_prompts(keys)
    for run, features_ND in zip((method, *runs[2:]), (sets[0], *sets[2:]), strict=True):
        pair = (features_ND, sets[1])
        # An exchange must not change the scale, so the test has that of its own two runs.
        tested = scale_features(pair) if is_scaled else pair
        lines += _compare_images(run, plain, pair, tested, group_N)
    return lines


def describe_repetitions(
    runs: Sequence[Run], extractor: Extractor | str, size: int = 1
) -> list[str]:
    """Test `size` images of each prompt by themselves, then the next ones, as repetitions.

    Images of other numbers are drawn from other noise, so the repetitions are independent. Raises
    UserError as `describe_distances`, for runs of one seed, and for fewer than two repetitions.
    """
    keys = _share_keys(runs)
    repetition_N = np.array([image // max(size, 1) for _, image in keys])
    whole = [r for r in range(repetition_N.max() + 1) if (repetition_N == r).sum() > 1]
    if size < 1 or len(whole) < 2:
        raise UserError(f"--each {size}: there are no two repetitions of so many images a prompt")
    sets = [_read_features(run, keys, extractor) for run in runs]
    identity = extractor if isinstance(extractor, str) else extractor.identity
    is_scaled = needs_scaling(identity)
    group_N = _number_prompts(keys)
    labels = label_runs(runs)
    plain = runs[1]
    lines = []
    for run, features_ND in zip(runs, sets, strict=True):
        if run is plain:
            continue
        if run.about.get("seed") == plain.about.get("seed"):
            raise UserError(f"{run.path} and {plain.path} have one seed: give runs of other seeds")
        p = []
        for repetition in whole:
            is_in_N = repetition_N == repetition
            pair = [features_ND[is_in_N], sets[1][is_in_N]]
            tested = scale_features(pair) if is_scaled else pair
            p.append(distances.swap_test(*tested, group_N=group_N[is_in_N]).p)
        lines.append(f"{labels[run.path]} to {labels[plain.path]}: {_count_rejected(p)}")
        lines.append(f"  p = {', '.join(f'{one:.3f}' for one in sorted(p))}")
    images = round(len(keys) / len(whole))
    return [f"{len(whole)} repetitions of {images} images", *lines]


def _count_rejected(p: Sequence[float]) -> str:
    """Say how many repetitions find a difference, and how many would where there is none."""
    from scipy.stats import binom, kstest

    rejected = sum(one < stats.ALPHA for one in p)
    most = int(binom.ppf(0.99, len(p), stats.ALPHA))
    return (
        f"{rejected} of {len(p)} repetitions differ at {stats.ALPHA:.0%} (equals: up to {most} in "
        f"99 % of cases); are all p equally likely? p = {kstest(p, 'uniform').pvalue:.2g}"
    )


def _share_keys(runs: Sequence[Run]) -> list[tuple[str, int]]:
    """List the images that all runs have. Raises UserError unless there are two or more."""
    keys = sorted(set.intersection(*(set(run.done) for run in runs)))
    if len(keys) < 2:
        raise UserError("the runs have no two images of the same prompts")
    return keys


def _read_features(
    run: Run, keys: Sequence[tuple[str, int]], extractor: Extractor | str
) -> np.ndarray:
    """Describe a run's images, [N, D], or read what its folder keeps of them."""
    if isinstance(extractor, str):
        scores = [run.scores[key] for key in keys]
        return read_features(run.path, scores, extractor).astype(np.float64)
    pictures = []
    for key in keys:
        file = run.image(run.done[key])
        if file is None:
            raise UserError(f"{run.path}: image {key[1]} of {key[0]} is not in the folder")
        try:
            with Pillow.open(file, formats=FORMATS) as picture:
                pictures.append(np.asarray(picture.convert("RGB")))
        except UNREADABLE as error:
            raise UserError(f"{file}: cannot be read ({one_line(error)})") from None
    return extractor.features(pictures).astype(np.float64)


def _compare_images(
    run: Run,
    plain: Run,
    pair: Sequence[np.ndarray],
    tested: Sequence[np.ndarray],
    group_N: np.ndarray,
) -> list[str]:
    """State both distances of a run's images to plain's, and whether exchanges explain them.

    `pair` are features of both in the scale of the Fréchet distance, `tested` in that of the test.
    """
    x_ND, y_ND = pair
    labels = label_runs([run, plain])
    name = f"{labels[run.path]} ({run.fingerprint}) to {labels[plain.path]} ({plain.fingerprint})"
    if np.array_equal(x_ND, y_ND):
        return [f"{name}: identical images"]
    if run.about.get("seed") == plain.about.get("seed"):
        value = distances.frechet(x_ND, y_ND).value
        return [
            f"{name}: Fréchet distance {value:.3f}; no test: both runs have "
            f"seed {run.about.get('seed')}, and images of common noise are not independent"
        ]
    found = distances.swap_test(*tested, group_N=group_N)
    spread = distances.frechet_swap_test(x_ND, y_ND, group_N=group_N)
    p = "< 0.001" if found.p < 0.001 else f"= {found.p:.3f}"
    prompts = len(set(group_N.tolist()))
    verdict = (
        f"the images differ (p {p})"
        if found.p < stats.ALPHA
        else f"no difference found with {prompts} prompts (p {p})"
    )
    return [
        f"{name}: {verdict}",
        f"  Fréchet distance {spread.statistic:.3f}, after exchanges {spread.null_mean:.3f} "
        f"± {spread.null_deviation:.3f}; kernel distance {found.statistic:+.4f}, "
        f"after exchanges {found.null_mean:+.4f} ± {found.null_deviation:.4f}",
    ]


def _number_prompts(keys: Sequence[tuple[str, int]]) -> np.ndarray:
    """Number the prompts of images, from 0."""
    numbers: Mapping[str, int] = {
        prompt: i for i, prompt in enumerate(dict.fromkeys(prompt for prompt, _ in keys))
    }
    return np.array([numbers[prompt] for prompt, _ in keys])


if __name__ == "__main__":
    sys.exit(main())
