"""GridAR: draw in pieces; replace what cannot become right any more, and say in the prompt what is
already there.

Park, Jang, Kim, Yang, "Progress by Pieces: Test-Time Scaling for Autoregressive Image Generation",
arXiv 2511.21185, after the released code (JoonHyung-Park/GridAR). Shapes: R canvases, K = 3
branches (null prompt, prompt, rewritten prompt), T positions, V vocabulary.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from harness import Canvas, Image, Judge, Session, UserError, Verifier, cfg, pack_picture
from methods.best_of_n import best, unscorable

GROUP = 4
"""Candidates that replace each other."""
PADS = ("repeat", "zero", "mean", "model")


# ------------------------------------------------------------------ guidance


def orthogonal(d_RTV: Tensor, along_RTV: Tensor) -> Tensor:
    """The part of `d` that is orthogonal to `along`, over the vocabulary; all of `d` where `along`
    is zero.
    """
    norm_RT1 = (along_RTV * along_RTV).sum(-1, keepdim=True).clamp(min=1e-12)
    return d_RTV - (d_RTV * along_RTV).sum(-1, keepdim=True) / norm_RT1 * along_RTV


def three_way(logits_RKTV: Tensor, scale_R: Tensor, rewrite_scale: float | None = None) -> Tensor:
    """Guidance by a prompt and its rewriting (GridAR `decode.py`): what the rewriting adds beyond
    ordinary guidance.

    `scale` is the usual one, null + scale * (text - null); the paper's is smaller by one, and
    `rewrite_scale`, the weight of the orthogonal direction, is the same as the paper's unless
    given.
    """
    null_RTV, text_RTV, rewritten_RTV = logits_RKTV.unbind(1)
    weight_R = (
        scale_R - 1 if rewrite_scale is None else scale_R.new_full(scale_R.shape, rewrite_scale)
    ).to(logits_RKTV.dtype)
    d_perp_RTV = orthogonal(rewritten_RTV - null_RTV, text_RTV - null_RTV)
    return cfg(logits_RKTV[:, :2], scale_R) + weight_R[:, None, None] * d_perp_RTV


# ------------------------------------------------------------------ what the verifier is shown


def composite(views: Sequence[Image], share: float, line: int) -> Image:
    """The top `share` of some candidates, stacked from top to bottom and divided by black lines
    `line` pixels high.
    """
    strip = round(share * len(views[0]))
    stacked = np.concatenate([view[:strip] for view in views])
    for boundary in range(strip, len(stacked), strip):
        stacked[boundary - line // 2 : boundary - line // 2 + line] = 0
    return stacked


def masked(view: Image, share: float, line: int) -> Image:
    """One candidate: its top `share`, a line, and black where nothing is drawn yet."""
    visible = round(share * len(view))
    shown = view.copy()
    shown[max(0, visible - line // 2) :] = 0
    return shown


def padding(tokens: Sequence[int], total: int, pad: str) -> list[int]:
    """Tokens to show behind `tokens`: their repetition, zeros, or their truncated mean; none where
    the model fills.
    """
    missing = total - len(tokens)
    if pad == "model" or not tokens:
        return []
    if pad == "repeat":
        return [tokens[i % len(tokens)] for i in range(missing)]
    return [0 if pad == "zero" else int(sum(tokens) / len(tokens))] * missing


# ------------------------------------------------------------------ what the verifier says


@dataclass(frozen=True, slots=True)
class Selection:
    """What a verifier's replies come to: verdicts, and for each candidate the one it becomes a copy
    of.
    """

    possible: list[bool]
    source: list[int]
    all_impossible: int  # groups left as they are, because nothing in them is possible
    failed: int  # replies that never came
    malformed: int  # replies that are not exactly one verdict per strip

    @property
    def replaced(self) -> int:
        return sum(source != i for i, source in enumerate(self.source))


def selection(
    replies: Sequence[str | None],
    strips: int,
    *,
    grouped_by_4: bool = True,
    strict_parse: bool = False,
    rng: np.random.Generator | None = None,
) -> Selection:
    """Read one reply per composite and replace impossible candidates by possible ones of their
    group, in turn.

    `rng` replaces them by random ones instead. Ungrouped, all candidates of the prompt are one
    group.
    """
    words = [
        _words(reply, strict_parse) if reply is not None else ["possible"] * strips
        for reply in replies
    ]
    joint = (
        max(1, GROUP // strips) if strict_parse else 1
    )  # the released code joins a group's replies, then cuts
    possible: list[bool] = []
    for first in range(0, len(words), joint):
        said = words[first : first + joint]
        flags = [word == "possible" for one in said for word in one]
        possible += (flags + [False] * (strips * len(said)))[: strips * len(said)]
    size = GROUP if grouped_by_4 else max(1, len(possible))
    groups = [range(first, first + size) for first in range(0, len(possible), size)]
    source = list(range(len(possible)))
    for group in groups:
        good = [j for j in group if possible[j]]
        for k, j in enumerate(j for j in group if good and not possible[j]):
            source[j] = good[k % len(good) if rng is None else int(rng.integers(len(good)))]
    return Selection(
        possible,
        source,
        all_impossible=sum(not any(possible[j] for j in group) for group in groups),
        failed=sum(reply is None for reply in replies),
        malformed=sum(
            len(one) != strips or not set(one) <= {"possible", "impossible"}
            for one, reply in zip(words, replies, strict=True)
            if reply is not None
        ),
    )


def _words(reply: str, strict: bool) -> list[str]:
    """The comma-separated words of a reply; leniently, without the punctuation behind them."""
    words = [word.strip() for word in reply.lower().split(",")]
    return (
        words if strict else [word.rstrip(string.punctuation + string.whitespace) for word in words]
    )


def rewriting(reply: str | None, original: str) -> str:
    """The prompt in a reply: what stands between its outer double quotes, if any; the original
    where there is none.
    """
    text = " ".join((reply or "").split())
    first = text.find('"')
    last = text.rfind('"')
    text = text[first + 1 : last] if first < last else text.replace('"', "")
    return " ".join(text.split()) or original


def choose(scores: Sequence[float | None], fallback: float | None = None) -> int:
    """Index of the best score; `fallback` stands in for a missing one, which otherwise never
    wins.
    """
    return best([fallback if unscorable(score) else score for score in scores])


# ------------------------------------------------------------------ the method


@dataclass(frozen=True, slots=True)
class Stage:
    """A stop when the top `share` of the image is drawn; the verifier sees `strips` candidates in a
    picture.

    Without `three_way`, a rewritten prompt takes the place of the original.
    """

    name: str
    share: float
    strips: int
    select: bool
    rewrite: bool
    three_way: bool

    def until(self, grid: tuple[int, int]) -> int:
        """Tokens drawn at the stop. Raises UserError where the top `share` is no whole number of
        token rows.
        """
        rows = self.share * grid[0]
        if rows != int(rows) or not 0 <= rows < grid[0]:
            raise UserError(
                f"method.stages.{self.name}: the top {self.share:g} of {grid[0]} rows of tokens is {rows:g} rows; "
                "choose a share that gives whole rows, fewer than all"
            )
        return int(rows) * grid[1]


class GridAR:
    """N candidates grown in stages; `reward` chooses among the finished ones.

    `stages` are stops by name, in the order of their shares; a stop (None leaves it out) may switch
    `select`, `rewrite` or `three_way` off for itself. A stop with share 0 rewrites the prompt
    before anything is drawn. Rewriting starts from the original prompt each time. Without stops
    this is Best-of-N. Raises UserError for numbers that do not fit together, and for a grid that
    the stages cannot split.
    """

    tokens_per_step = 1
    needs_guidance = True

    def __init__(
        self,
        n: int,
        stages: Mapping[str, Mapping[str, float | bool] | None],
        verifier: Verifier,
        reward: Judge,
        *,
        select: bool = True,
        rewrite: bool = True,
        three_way: bool = True,
        rewrite_scale: float | None = None,
        grouped_by_4: bool = True,
        replacement: str = "round_robin",
        pad: str = "repeat",
        line: int = 3,
        strict_parse: bool = False,
        keep_original: bool = False,
        most_words: int = 80,
        orm_fallback: float | None = None,
    ) -> None:
        if n < 1:
            raise UserError(f"method.n={n}: at least one candidate is needed")
        if pad not in PADS or replacement not in ("round_robin", "random"):
            raise UserError(
                f"method.pad={pad}, method.replacement={replacement}: choose pad from {', '.join(PADS)} "
                "and replacement from round_robin, random"
            )
        switches = {"select": select, "rewrite": rewrite, "three_way": three_way}
        made = [
            _stage(name, options, switches)
            for name, options in stages.items()
            if options is not None
        ]
        self.stages = sorted(made, key=lambda stage: stage.share)
        for stage in self.stages:
            _expect_composites(stage, n, grouped_by_4)
        self.rows = self.n = n
        self.branches = 3 if any(stage.rewrite and stage.three_way for stage in self.stages) else 2
        self.verifier = verifier
        self.reward = reward
        self.grouped_by_4 = grouped_by_4
        self.replacement = replacement
        self.strict_parse = strict_parse
        self.pad = pad
        self.line = line
        self.keep_original = keep_original
        self.most_words = most_words
        self.orm_fallback = orm_fallback
        self._guide = partial(_three_way, rewrite_scale=rewrite_scale)
        self._selectors = {
            stage.strips: verifier.select(stage.strips) for stage in self.stages if stage.select
        }
        self._rewriter = verifier.rewrite

    def expect_grid(self, grid: tuple[int, int]) -> None:
        for stage in self.stages:
            stage.until(grid)

    async def generate(self, prompt: str, s: Session) -> Canvas:
        candidates = s.open(self.n)
        stops: list = []
        for stage in self.stages:
            await s.run(candidates, until=stage.until(s.grid))
            stops.append({"stage": stage.name})
            views = await self._views(stage, candidates, s)
            if stage.select:
                views = await self._select(stage, prompt, candidates, views, s, stops[-1])
            if stage.rewrite:
                await self._rewrite(stage, prompt, candidates, views, s, stops[-1])
        if stops:
            s.note(stages=stops)
        await s.run(candidates)
        if self.n == 1:
            return candidates[0]
        scores = await s.ask(self.reward, prompt, await s.render(candidates))
        chosen = choose(scores, self.orm_fallback)
        known = [None if unscorable(score) else score for score in scores]
        s.note(scores=known, unscored=known.count(None), chosen=chosen)
        return candidates[chosen]

    async def _views(self, stage: Stage, candidates: Sequence[Canvas], s: Session) -> list[Image]:
        """Each candidate decoded by itself (not one canvas of four), so that no picture bleeds into
        another.
        """
        if not (stage.select or stage.rewrite):
            return []
        return await s.render(
            candidates, [padding(c.tokens, s.num_tokens, self.pad) for c in candidates]
        )

    async def _select(
        self,
        stage: Stage,
        prompt: str,
        candidates: Sequence[Canvas],
        views: Sequence[Image],
        s: Session,
        trace: dict,
    ) -> list[Image]:
        """Replace impossible candidates; returns the views of what is there now."""
        size = stage.strips
        pictures = [
            composite(views[i : i + size], stage.share, self.line) for i in range(0, self.n, size)
        ]
        replies = await s.ask(self._selectors[size], prompt, pictures)
        rng = s.rng(f"replacement {stage.name}") if self.replacement == "random" else None
        found = selection(
            replies, size, grouped_by_4=self.grouped_by_4, strict_parse=self.strict_parse, rng=rng
        )
        for j, source in enumerate(found.source):
            if source != j:
                s.fork(candidates[source], over=candidates[j])
        trace.update(
            pictures=[pack_picture(picture) for picture in pictures],
            replies=list(replies),
            possible=found.possible,
            source=found.source,
            all_impossible=found.all_impossible,
            failed=found.failed,
            malformed=found.malformed,
        )
        return [views[source] for source in found.source]

    async def _rewrite(
        self,
        stage: Stage,
        prompt: str,
        candidates: Sequence[Canvas],
        views: Sequence[Image],
        s: Session,
        trace: dict,
    ) -> None:
        """Give each candidate a prompt that fits what it shows."""
        replies = await s.ask(
            self._rewriter, prompt, [masked(v, stage.share, self.line) for v in views]
        )
        texts = [rewriting(reply, prompt) for reply in replies]
        strayed = [not text.startswith(prompt) for text in texts]
        refused = [
            (lost and self.keep_original) or len(text.split()) > self.most_words
            for text, lost in zip(texts, strayed, strict=True)
        ]
        texts = [prompt if no else text for text, no in zip(texts, refused, strict=True)]
        for canvas, text in zip(candidates, texts, strict=True):
            if stage.three_way:
                s.condition(canvas, (None, prompt, text), self._guide)
            else:
                s.condition(canvas, (None, text), cfg)
        trace.update(
            texts=texts,
            unanswered=sum(reply is None for reply in replies),
            strayed=sum(strayed),
            refused=sum(refused),
        )


_three_way = three_way  # the constructor has an option of the same name


def _stage(name: str, options: Mapping[str, float | bool], switches: Mapping[str, bool]) -> Stage:
    unknown = set(options) - {"share", "strips", *switches}
    if unknown or "share" not in options:
        raise UserError(
            f"method.stages.{name}: share, strips, select, rewrite, three_way; got {dict(options)}"
        )
    on = {switch: value and bool(options.get(switch, True)) for switch, value in switches.items()}
    return Stage(name, float(options["share"]), int(options.get("strips", 1)), **on)


def _expect_composites(stage: Stage, n: int, grouped_by_4: bool) -> None:
    """Raise UserError unless the candidates fill whole composites, and whole groups of whole
    composites.
    """
    if not stage.select:
        return
    if stage.share <= 0 or stage.strips < 1:
        raise UserError(
            f"method.stages.{stage.name}: nothing to judge with share={stage.share:g}: set select=false"
        )
    if grouped_by_4 and (n % GROUP or GROUP % stage.strips):
        raise UserError(
            f"method.n={n} with {stage.strips} candidates per picture: groups of {GROUP} need both to fit; "
            f"choose n from {GROUP}, {2 * GROUP}, ... or set method.grouped_by_4=false"
        )
    if n % stage.strips:
        raise UserError(
            f"method.n={n}: stage {stage.name} shows {stage.strips} candidates per picture; choose a multiple"
        )
