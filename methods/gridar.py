"""GridAR: draw in pieces, replace candidates that cannot become right, and rewrite the prompts.

Park, Jang, Kim, Yang, "Progress by Pieces: Test-Time Scaling for Autoregressive Image Generation",
arXiv 2511.21185, after the released code (JoonHyung-Park/GridAR). Shapes: R canvases, K = 3
branches (null prompt, prompt, rewritten prompt), T positions, V vocabulary.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor
from typing_extensions import TypedDict

from harness import (
    Canvas,
    Count,
    Decoding,
    Image,
    Judge,
    Natural,
    NotNegative,
    Session,
    Share,
    UserError,
    Verifier,
    cfg,
    pack_picture,
)
from methods.best_of_n import index_of_best, is_missing

GROUP = 4
"""Candidates that replace each other."""

VERDICTS = ("possible", "impossible")
STRIP_WORDS = {"strip", "image", "picture", "candidate"}
"""What may stand before a verdict, with a number."""
_WORD = re.compile(r"[^\W\d_]+")

PADS = ("repeat", "zero", "mean", "model")
REPLACEMENTS = ("round_robin", "random")

Facts = dict[str, Any]
"""What a stop adds to the journal, as plain values."""


# ------------------------------------------------------------------ settings


@dataclass(frozen=True, slots=True)
class PictureSettings:
    """How unfinished candidates are shown to the verifier."""

    pad: str  # tokens shown in place of undrawn ones, one of PADS
    line: int  # height of the lines between strips, pixels


@dataclass(frozen=True, slots=True)
class SelectionSettings:
    """How verdicts are read, and impossible candidates replaced."""

    grouped_by_4: bool  # replace within fours; otherwise among all candidates of the prompt
    replacement: str  # one of REPLACEMENTS
    strict_parse: bool  # read verdicts exactly as the released code does


@dataclass(frozen=True, slots=True)
class RewriteSettings:
    """Which rewritten prompts are refused; the original takes their place."""

    keep_original: bool  # refuse those that do not begin with the original
    most_words: int  # refuse longer ones


class StageOptions(TypedDict, total=False):
    """The options of a stage; the switches may switch off what is on for the method."""

    share: Share
    strips: Count
    select: bool
    rewrite: bool
    three_way: bool


@dataclass(frozen=True, slots=True)
class Stage:
    """A stop of the drawing, when the top `share` of the image is drawn."""

    name: str
    share: float
    strips: int  # candidates in a picture for the verifier
    select: bool  # replace impossible candidates
    rewrite: bool  # rewrite the prompt of each candidate
    three_way: bool  # guide by original and rewritten prompt; otherwise by the rewritten one alone

    def row_count(self, grid: tuple[int, int]) -> int:
        """Return how many rows are drawn at the stop.

        Raises UserError if the top `share` is not a whole number of token rows.
        """
        rows = self.share * grid[0]
        if rows != int(rows) or not 0 <= rows < grid[0]:
            raise UserError(
                f"method.stages.{self.name}: "
                f"the top {self.share:g} of {grid[0]} rows of tokens is {rows:g} rows; "
                "choose a share that gives whole rows, fewer than all"
            )
        return int(rows)


# ------------------------------------------------------------------ the method


class GridAR:
    """N candidates grown in stages; `reward` chooses among the finished ones.

    `stages` are stops by name, drawn in the order of their shares; None leaves a stop out, and a
    stop may switch `select`, `rewrite` or `three_way` off for itself. A stop with share 0 rewrites
    the prompt before anything is drawn. Every rewriting starts from the original prompt. Without
    stops this is Best-of-N.

    Where the verifier or the reward does not answer, the image fails. `released_fallback` and
    `orm_fallback` go on as the released code does where it refuses or cannot be read, and note how
    often; never where it is unreachable.

    `decoding` finishes the candidates behind the last stop, for example speculatively; None draws
    them token by token. Nobody has published this combination. Raises UserError for numbers that do
    not fit together, and for a grid that the stages cannot split.
    """

    needs_guidance = True

    def __init__(
        self,
        n: Count,
        stages: Mapping[str, StageOptions | None],
        verifier: Verifier,
        reward: Judge,
        *,
        select: bool = True,
        rewrite: bool = True,
        three_way: bool = True,
        rewrite_scale: NotNegative | None = None,
        grouped_by_4: bool = True,
        replacement: str = "round_robin",
        pad: str = "repeat",
        line: Natural = 3,
        strict_parse: bool = False,
        keep_original: bool = False,
        most_words: Count = 80,
        orm_fallback: float | None = None,
        released_fallback: bool = False,
        decoding: Decoding | None = None,
    ) -> None:
        _expect_choices(n, pad, replacement)
        switches = {"select": select, "rewrite": rewrite, "three_way": three_way}
        self.stages = _read_stages(stages, switches)
        for stage in self.stages:
            _expect_composites(stage, n, grouped_by_4)
        needs_third_branch = any(stage.rewrite and stage.three_way for stage in self.stages)

        self.n = n
        self.rows = n
        self.branches = 3 if needs_third_branch else 2
        self.orm_fallback = orm_fallback
        self.released_fallback = released_fallback
        self.decoding = decoding
        self.tokens_per_step = 1 if decoding is None else decoding.tokens_per_step
        self.tree_capacity = 0 if decoding is None else decoding.tree_capacity
        self._picture = PictureSettings(pad, line)
        self._selection = SelectionSettings(grouped_by_4, replacement, strict_parse)
        self._rewriting = RewriteSettings(keep_original, most_words)
        self._guide = partial(three_way_guidance, rewrite_scale=rewrite_scale)
        # The ids of these three are part of a run's fingerprint, under the attributes' names.
        self.verifier = verifier
        self.reward = reward
        self._rewriter = verifier.rewrite
        self.rewrites_prompts = any(stage.rewrite for stage in self.stages)
        self._selectors = {
            stage.strips: verifier.select(stage.strips) for stage in self.stages if stage.select
        }

    def expect_grid(self, grid: tuple[int, int]) -> None:
        """Raise UserError if a stage does not end with a whole row of the grid."""
        for stage in self.stages:
            stage.row_count(grid)

    async def generate(self, prompt: str, s: Session) -> Canvas:
        candidates = s.open(self.n)
        stops: list[Facts] = []
        for stage in self.stages:
            # 1. Grow all candidates to the stop.
            drawn_rows = stage.row_count(s.grid)
            await s.run(candidates, until=s.raster.places_of_rows(drawn_rows))
            stop: Facts = {"stage": stage.name}
            views: list[Image] = []
            if stage.select or stage.rewrite:
                views = await self._render_views(candidates, s)

            # 2. Select: copies of possible candidates replace the impossible ones.
            if stage.select:
                found, facts = await self._select(stage, prompt, views, s)
                for i, source in enumerate(found.source):
                    if source != i:
                        s.fork(candidates[source], over=candidates[i])
                views = [views[source] for source in found.source]
                stop |= facts

            # 3. Rewrite: each candidate goes on with a prompt that fits what it shows.
            if stage.rewrite:
                texts, facts = await self._rewrite(stage, prompt, views, s)
                for canvas, text in zip(candidates, texts, strict=True):
                    self._condition(stage, canvas, prompt, text, s)
                stop |= facts
            stops.append(stop)
        if stops:
            s.note(stages=stops)

        # 4. Finish all candidates, and deliver the one that the reward likes best.
        if self.decoding is None:
            await s.run(candidates)
        else:
            await self.decoding.finish(candidates, s)
        if self.n == 1:
            return candidates[0]
        images = await s.render(candidates)
        may_lack_scores = self.orm_fallback is not None
        scores = await s.ask(self.reward, prompt, images, allow_silence=may_lack_scores)
        chosen = choose_candidate(scores, self.orm_fallback)
        s.note(scores=scores, unscored=scores.count(None), chosen=chosen)
        return candidates[chosen]

    async def _render_views(self, candidates: Sequence[Canvas], s: Session) -> list[Image]:
        """Decode each candidate by itself, not four on one canvas: no image bleeds into another."""
        pads = []
        for canvas in candidates:
            codes = s.raster.pick_codes(canvas.tokens)
            pads.append(padding_tokens(codes, s.raster.codes, self._picture.pad))
        return await s.render(candidates, pads)

    async def _select(
        self,
        stage: Stage,
        prompt: str,
        views: Sequence[Image],
        s: Session,
    ) -> tuple[Selection, Facts]:
        """Ask which candidates are possible, and decide which of them replace the others."""
        size = stage.strips
        pictures = []
        for first in range(0, self.n, size):
            tops = views[first : first + size]
            pictures.append(stack_tops(tops, stage.share, self._picture.line))
        settings = self._selection
        is_read_as_released = self.released_fallback or settings.strict_parse
        replies = await s.ask(
            self._selectors[size],
            prompt,
            pictures,
            read=None if is_read_as_released else partial(read_verdicts, strips=size),
            allow_silence=self.released_fallback,
        )

        rng = s.rng(f"replacement {stage.name}") if settings.replacement == "random" else None
        found = select_sources(
            replies,
            size,
            grouped_by_4=settings.grouped_by_4,
            strict_parse=settings.strict_parse,
            rng=rng,
        )
        facts: Facts = {
            "pictures": [pack_picture(picture) for picture in pictures],
            "replies": list(replies),
            "possible": found.possible,
            "source": found.source,
            "all_impossible": found.all_impossible,
            "failed": found.failed,
            "malformed": found.malformed,
        }
        return found, facts

    async def _rewrite(
        self,
        stage: Stage,
        prompt: str,
        views: Sequence[Image],
        s: Session,
    ) -> tuple[list[str], Facts]:
        """Ask for a prompt that fits each candidate; a refused one becomes the original."""
        pictures = [hide_undrawn(view, stage.share, self._picture.line) for view in views]
        replies = await s.ask(
            self._rewriter,
            prompt,
            pictures,
            read=None if self.released_fallback else read_rewriting,
            allow_silence=self.released_fallback,
        )

        settings = self._rewriting
        texts = []
        strayed = 0  # rewritten prompts that do not begin with the original
        refused = 0
        for reply in replies:
            text = extract_prompt(reply, prompt)
            has_strayed = not text.startswith(prompt)
            strayed += has_strayed
            if (has_strayed and settings.keep_original) or len(text.split()) > settings.most_words:
                text = prompt
                refused += 1
            texts.append(text)
        unanswered = sum(reply is None for reply in replies)
        facts: Facts = {
            "texts": texts,
            "unanswered": unanswered,
            "strayed": strayed,
            "refused": refused,
        }
        return texts, facts

    def _condition(
        self,
        stage: Stage,
        canvas: Canvas,
        prompt: str,
        text: str,
        s: Session,
    ) -> None:
        """Condition a candidate on its rewritten prompt from here on."""
        if stage.three_way:
            s.condition(canvas, (None, prompt, text), self._guide)
        else:
            s.condition(canvas, (None, text), cfg)


def choose_candidate(scores: Sequence[float | None], fallback: float | None = None) -> int:
    """Find the best score; `fallback` stands in for a missing one, which otherwise never wins."""
    return index_of_best([fallback if is_missing(score) else score for score in scores])


# ------------------------------------------------------------------ reading the options


def _expect_choices(n: int, pad: str, replacement: str) -> None:
    """Raise UserError for values that are never possible, whatever the others are."""
    if n < 1:
        raise UserError(f"method.n={n}: at least one candidate is needed")
    if pad not in PADS or replacement not in REPLACEMENTS:
        raise UserError(
            f"method.pad={pad}, method.replacement={replacement}: "
            f"choose pad from {', '.join(PADS)} and replacement from {', '.join(REPLACEMENTS)}"
        )


def _read_stages(
    stages: Mapping[str, StageOptions | None], switches: Mapping[str, bool]
) -> list[Stage]:
    """Read the stages that are not left out, in the order of their shares."""
    read = []
    for name, options in stages.items():
        if options is not None:
            read.append(_read_stage(name, options, switches))
    return sorted(read, key=lambda stage: stage.share)


def _read_stage(name: str, options: StageOptions, switches: Mapping[str, bool]) -> Stage:
    """Read a stage, which may switch off for itself what is on for the method."""
    unknown = set(options) - {"share", "strips", *switches}
    if unknown or "share" not in options:
        raise UserError(
            f"method.stages.{name}: share, strips, select, rewrite, three_way; got {dict(options)}"
        )
    share = float(options["share"])
    strips = int(options.get("strips", 1))
    active = {switch: on and bool(options.get(switch, True)) for switch, on in switches.items()}
    return Stage(name, share, strips, **active)


def _expect_composites(stage: Stage, n: int, grouped_by_4: bool) -> None:
    """Raise UserError unless the candidates fill whole composites, and these whole groups."""
    if not stage.select:
        return
    if stage.share <= 0 or stage.strips < 1:
        raise UserError(
            f"method.stages.{stage.name}: nothing to judge with share={stage.share:g}: "
            "set select=false"
        )
    if grouped_by_4 and (n % GROUP or GROUP % stage.strips):
        raise UserError(
            f"method.n={n} with {stage.strips} candidates per picture: "
            f"groups of {GROUP} need both to fit; "
            f"choose n from {GROUP}, {2 * GROUP}, ... or set method.grouped_by_4=false"
        )
    if n % stage.strips:
        raise UserError(
            f"method.n={n}: stage {stage.name} shows {stage.strips} candidates per picture; "
            "choose a multiple"
        )


# ------------------------------------------------------------------ guidance


def orthogonal_part(d_RTV: Tensor, along_RTV: Tensor) -> Tensor:
    """Return the part of `d` that is orthogonal to `along` over the vocabulary.

    That is all of `d` where `along` is zero.
    """
    norm_RT1 = (along_RTV * along_RTV).sum(-1, keepdim=True).clamp(min=1e-12)
    return d_RTV - (d_RTV * along_RTV).sum(-1, keepdim=True) / norm_RT1 * along_RTV


def three_way_guidance(
    logits_RKTV: Tensor, scale_R: Tensor, rewrite_scale: float | None = None
) -> Tensor:
    """Guide by a prompt and its rewriting (GridAR `decode.py`), a `Guide` over three branches.

    To ordinary guidance it adds the part of the rewriting's direction that is orthogonal to the
    prompt's. `scale` is the usual one, null + scale * (text - null), which is the paper's plus one.
    `rewrite_scale` is the weight of the orthogonal part: the paper's scale unless given.
    """
    null_RTV, text_RTV, rewritten_RTV = logits_RKTV.unbind(1)
    if rewrite_scale is None:
        weight_R = scale_R - 1
    else:
        weight_R = scale_R.new_full(scale_R.shape, rewrite_scale)
    weight_R11 = weight_R.to(logits_RKTV.dtype)[:, None, None]
    d_perp_RTV = orthogonal_part(rewritten_RTV - null_RTV, text_RTV - null_RTV)
    return cfg(logits_RKTV[:, :2], scale_R) + weight_R11 * d_perp_RTV


# ------------------------------------------------------------------ what the verifier is shown


def padding_tokens(tokens: Sequence[int], total: int, pad: str) -> list[int]:
    """Return the tokens to show in place of undrawn ones.

    They are the drawn ones repeated, zeros, or the mean of the drawn ones, truncated; there are
    none if the model's own filling is shown (`model`), or if nothing is drawn.
    """
    missing = total - len(tokens)
    if pad == "model" or not tokens:
        return []
    if pad == "repeat":
        return [tokens[i % len(tokens)] for i in range(missing)]
    filling = 0 if pad == "zero" else int(sum(tokens) / len(tokens))
    return [filling] * missing


def stack_tops(views: Sequence[Image], share: float, line: int) -> Image:
    """Stack the top `share` of some candidates, divided by black lines `line` pixels high."""
    strip = round(share * len(views[0]))
    stacked = np.concatenate([view[:strip] for view in views])
    for boundary in range(strip, len(stacked), strip):
        top = boundary - line // 2
        stacked[top : top + line] = 0
    return stacked


def hide_undrawn(view: Image, share: float, line: int) -> Image:
    """Return the top `share` of a candidate above a line, and black where nothing is drawn yet."""
    visible = round(share * len(view))
    shown = view.copy()
    shown[max(0, visible - line // 2) :] = 0
    return shown


# ------------------------------------------------------------------ what the verifier answers


@dataclass(frozen=True, slots=True)
class Selection:
    """Verdicts of a verifier, and for each candidate the one that it becomes a copy of."""

    possible: list[bool]
    source: list[int]
    all_impossible: int  # groups left as they are, because nothing in them is possible
    failed: int  # replies that never came
    malformed: int  # replies that are not exactly one verdict per strip

    @property
    def replaced(self) -> int:
        """List the candidates that become a copy of another one."""
        return sum(source != i for i, source in enumerate(self.source))


def select_sources(
    replies: Sequence[str | None],
    strips: int,
    *,
    grouped_by_4: bool = True,
    strict_parse: bool = False,
    rng: np.random.Generator | None = None,
) -> Selection:
    """Read one reply per composite, and replace impossible candidates by possible ones.

    Candidates replace each other within groups of 4, or within all of the prompt. The possible ones
    of a group take turns, or are drawn from `rng`. A composite without a reply is possible.
    """
    # 1. A verdict for each candidate.
    answers = [_split_words(reply, strict_parse) for reply in replies if reply is not None]
    malformed = sum(not _is_one_verdict_per_strip(words, strips) for words in answers)
    possible = _read_verdicts(replies, strips, strict_parse)

    # 2. A source for each candidate, group by group.
    size = GROUP if grouped_by_4 else max(1, len(possible))
    source = list(range(len(possible)))
    all_impossible = 0
    for first in range(0, len(possible), size):
        group = range(first, first + size)
        good = [i for i in group if possible[i]]
        impossible = [i for i in group if not possible[i]]
        if not good:
            all_impossible += 1
            continue
        for turn, i in enumerate(impossible):
            pick = turn % len(good) if rng is None else int(rng.integers(len(good)))
            source[i] = good[pick]
    failed = len(replies) - len(answers)
    return Selection(possible, source, all_impossible, failed, malformed)


def _read_verdicts(replies: Sequence[str | None], strips: int, strict: bool) -> list[bool]:
    """Return whether each candidate is possible, `strips` of them for each reply.

    Missing words count as impossible, surplus words are dropped. The released code (`strict`) joins
    the replies of a group before that, so that words move between its strips.
    """
    joined = max(1, GROUP // strips) if strict else 1
    possible: list[bool] = []
    for first in range(0, len(replies), joined):
        some = replies[first : first + joined]
        flags: list[bool] = []
        for reply in some:
            words = ["possible"] * strips if reply is None else _split_words(reply, strict)
            flags += [word == "possible" for word in words]
        expected = strips * len(some)
        flags += [False] * expected
        possible += flags[:expected]
    return possible


def _split_words(reply: str, strict: bool) -> list[str]:
    """Split a reply at its commas; leniently, also drop the punctuation after each word."""
    words = [word.strip() for word in reply.lower().split(",")]
    if strict:
        return words
    return [word.rstrip(string.punctuation + string.whitespace) for word in words]


def read_verdicts(reply: str, strips: int) -> str:
    """Read one verdict for each strip, numbered, bold or a line each; returns them as asked for.

    Raises ValueError for anything else: it is no answer.
    """
    verdicts = []
    for part in re.split(r"[,;\n]+", reply.lower()):
        words = _WORD.findall(part)
        if not words:
            continue
        if words[-1] not in VERDICTS or not set(words[:-1]) <= STRIP_WORDS:
            raise ValueError(f"{part.strip()!r} is neither possible nor impossible")
        verdicts.append(words[-1])
    if len(verdicts) != strips:
        raise ValueError(f"{len(verdicts)} verdicts for {strips} strips")
    return ", ".join(verdicts)


def read_rewriting(reply: str) -> str:
    """Read a reply that holds a prompt. Raises ValueError for one without words."""
    if not _WORD.search(reply):
        raise ValueError("it holds no prompt")
    return reply


def _is_one_verdict_per_strip(words: Sequence[str], strips: int) -> bool:
    return len(words) == strips and set(words) <= set(VERDICTS)


def extract_prompt(reply: str | None, original: str) -> str:
    """Return the prompt in a reply: what stands between its outer double quotes, if there are two.

    Where that is empty, or there is no reply, it is the original.
    """
    text = " ".join((reply or "").split())
    first = text.find('"')
    last = text.rfind('"')
    text = text[first + 1 : last] if first < last else text.replace('"', "")
    return " ".join(text.split()) or original
