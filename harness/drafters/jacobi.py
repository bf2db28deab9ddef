"""Jacobi drafting: the target's own distributions of the last verification make the next draft.

There is no draft model and no training. After a rejection, the distributions behind the rejected
token are stale, because they saw it. Tokens drawn from them are still proper drafts, because it is
known what they were drawn from (Speculative Jacobi Decoding, arXiv 2410.01699).

Shapes: R rows (canvases), G places of the window, N image tokens, C candidates of a place, M nodes
of a tree, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.engine.acceptance import Draft, DraftVerdict, residual_probs
from harness.engine.canvas import Canvas
from harness.engine.draft_trees import (
    Static,
    Tree,
    chain_parents,
    continue_tree,
    without_replacement,
)
from harness.engine.memory_need import takes_nothing
from harness.engine.sampler import Sampler
from harness.kernels.noise import ACCEPT, BRANCH, DRAFT, DRAW, RESIDUAL, Noise
from harness.models.raster import FORCED_TOKEN, hold_forced_probs, is_forced_at
from harness.records import UserError

INITS = ("random", "uniform", "repeat_horizon", "repeat_vertical", "sample_horizon")
COUPLINGS = ("none", "maximal", "gumbel", "threshold")
SIBLINGS = ("target", "residual")
THRESHOLD = 0.5
"""How likely an old token must be under the new distribution, as a share of the old, to be kept."""


@dataclass(frozen=True, slots=True)
class JacobiWindow:
    """The next G places of R canvases, and what the last verification tells about them."""

    probs_RGV: Tensor  # the target's, stale behind a rejected token; zero from `verified_R` on
    verified_R: Tensor  # how many places, from the first on, have a distribution
    old_RG: Tensor  # tokens last drafted there
    old_probs_RGV: Tensor  # what those were drawn from; zero where nothing was drafted
    image_RN: Tensor  # tokens of the images as far as they are committed
    likeliest_R: Tensor  # by the last distribution of the verification, or the last token
    held_R: Tensor | None = None  # the token that is drawn for the first place already, else -1
    forced_RG: Tensor | None = None  # which places are forced; None: no model's place is


class Jacobi:
    """Draft the next window from the last verification, and make up tokens for its other places.

    `init` says what is made up: `random` tokens; `uniform`, the same, but declared as drawn from
    the uniform distribution, so that more of them are accepted; a copy of the token to the left in
    the row or above it (`repeat_horizon`, `repeat_vertical`); or the likeliest token at the last
    place that has a distribution (`sample_horizon`). Rows of the grid that begin without a known
    token begin with a random one. A forced place is drafted with the only token that it can have.

    `coupling` ties the next draft at a place to the last one there: `none` draws anew (SJD);
    `maximal` tests all old tokens for acceptance, those behind the rejected one too, and keeps
    those that pass (MC-SJD, arXiv 2510.24211; as we read it also SJD-PAC's adaptive continuation,
    arXiv 2603.18599); `gumbel` draws with the noise that plain sampling has at that place (GS-SJD),
    so that drafts agree with the rule `coupled` as often as they can. The recorded distribution is
    always the one that the token follows now, never an older one: otherwise images would not
    follow the target's distribution. `threshold` gives that up, as PJD's released code
    (boyaliao/PJD): an old token stays, with its old distribution, where it has become less than
    half as likely at most.

    Chains at several places of an image (`propose_at`) are made alike, each of the last verdict on
    its own row. Where a rule has drawn the next token of a row and it was not committed, it is the
    first one of the next draft, as the residual that it came from makes up for the rejection;
    `none` and `threshold` draw anew there, too, as PJD does.

    Trees are those of SJD-PAC: the tokens of a place, the same under every parent, are the token
    that a chain would have there and further ones drawn without replacement from the same
    distribution. `siblings` says from what the further ones come: `target`, as just said, keeps the
    target's distribution; `residual` draws them from what the coupling's residual leaves, as
    described of the released code (KangJialiang/SJD-PAC), and loses it.

    A drafter keeps no state: everything is in `Sampler.verdict`. That is None after a canvas was
    forked over, truncated, committed to or conditioned anew, and the whole window is made up.
    Raises UserError for unknown options.
    """

    trees = True  # `propose` also takes the shape of a static tree

    def __init__(
        self, init: str = "random", coupling: str = "none", siblings: str = "target"
    ) -> None:
        if init not in INITS:
            raise UserError(f"drafter.init={init}: choose from {', '.join(INITS)}")
        if coupling not in COUPLINGS:
            raise UserError(f"drafter.coupling={coupling}: choose from {', '.join(COUPLINGS)}")
        if siblings not in SIBLINGS:
            raise UserError(f"drafter.siblings={siblings}: choose from {', '.join(SIBLINGS)}")
        self.init = init
        self.coupling = coupling
        self.siblings = siblings

    memory_need = takes_nothing  # it works on what the sampler keeps

    def expect_tree(self, tree: Tree) -> None:
        """Raise UserError for a tree whose shape depends on a drafter's distributions."""
        if self.coupling == "threshold":
            raise UserError(
                "drafter.coupling=threshold: tokens of a tree follow the distributions of their "
                "places; choose none, maximal or gumbel"
            )
        if not isinstance(tree, Static):
            raise UserError(
                f"method.gamma is a tree of kind {type(tree).__name__}, and Jacobi drafts have no "
                "likeliest paths: choose Static or Proactive, or a number"
            )

    @torch.no_grad()
    def propose(
        self, sampler: Sampler, rows: Sequence[Canvas], n: int | Tree, sibling: int = 0
    ) -> list[Draft | None]:
        """Draft a chain of up to `n` tokens, or a static tree, for every row.

        A draft ends early enough that one more token fits into the image; None if none fits.
        Siblings are drawn from the same distributions, independently of each other.
        """
        # 1. Choose the depth of each draft.
        tree: Static | None = None
        if isinstance(n, int):
            most = n
        else:
            self.expect_tree(n)
            assert isinstance(n, Static)
            tree = n
            most = tree.depth
        lengths = [_chain_length(sampler, canvas, most) for canvas in rows]
        columns = max(lengths, default=0)
        if columns == 0:
            return [None for _ in rows]

        # 2. Fill a window that is as long as the longest.
        with sampler.working(rows, "draft"):
            noise = sampler.noise(rows, columns)
            verdicts = [sampler.verdict(canvas) for canvas in rows]
            window = _collect_window(sampler, rows, verdicts, noise.position_RT)
            grid_width = sampler.raster.stride
            if tree is None:
                token_RG, probs_RGV = self.fill(window, noise, grid_width, sibling)
            else:
                token_RG, probs_RGV = self.fill_tree(window, noise, grid_width, tree, sibling)

        # 3. Cut the rows; `followed` asks the sampler to keep the next verdict.
        drafts: list[Draft | None] = []
        for token_G, probs_GV, length in zip(token_RG, probs_RGV, lengths, strict=True):
            if length == 0:
                drafts.append(None)
            elif tree is None:
                drafts.append(Draft(token_G[:length], probs_GV[:length], followed=True))
            else:
                count = tree.count_nodes(length)
                parents = tree.parents[:count]
                drafts.append(Draft(token_G[:count], probs_GV[:count], parents, followed=True))
        return drafts

    @torch.no_grad()
    def propose_at(
        self,
        sampler: Sampler,
        rows: Sequence[Canvas],
        spans: Sequence[Sequence[tuple[int, int]]],
    ) -> list[list[Draft | None]]:
        """Draft a chain for every span of every row, a place and a length; None for length 0."""
        # 1. List the spans side by side.
        fronts: list[tuple[Canvas, int, int]] = []
        for canvas, some in zip(rows, spans, strict=True):
            fronts += [(canvas, place, length) for place, length in some if length]
        if not fronts:
            return [[None for _ in some] for some in spans]

        # 2. Fill a window that is as long as the longest.
        with sampler.working(rows, "draft"):
            canvases = [canvas for canvas, _, _ in fronts]
            columns = max(length for _, _, length in fronts)
            noise = sampler.noise_at(canvases, [place for _, place, _ in fronts], columns)
            verdicts = [sampler.verdict_at(canvas, place) for canvas, place, _ in fronts]
            window = _collect_window(sampler, canvases, verdicts, noise.position_RT)
            token_FG, probs_FGV = self.fill(window, noise, sampler.raster.stride)

        # 3. Cut them.
        drafts: list[Draft | None] = []
        for token_G, probs_GV, (_, _, length) in zip(token_FG, probs_FGV, fronts, strict=True):
            drafts.append(Draft(token_G[:length], probs_GV[:length], followed=True))
        left = iter(drafts)
        return [[next(left) if length else None for _, length in some] for some in spans]

    def fill_tree(
        self, window: JacobiWindow, noise: Noise, grid_width: int, tree: Static, sibling: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return the tokens of a tree's nodes [R, M] and what each was drawn from [R, M, V].

        The window has as many places as the tree is deep, or fewer, where rows end; then there are
        as many nodes as are no deeper.
        """
        # 1. The first candidate of every place is a chain's.
        first_RG, probs_RGV = self.fill(window, noise, grid_width, sibling)
        depth = first_RG.shape[1]
        nodes = tree.count_nodes(depth)
        node_of = list(zip(tree.depths[:nodes], tree.ranks[:nodes], strict=True))
        fresh = noise.salted(noise.position_RT[:, 0])
        if sibling:
            fresh = fresh.salted(torch.full_like(noise.position_RT[:, 0], sibling))

        # 2. Draw the others; list all candidates and their distributions, place after place.
        tokens: list[Tensor] = []
        stages: list[Tensor] = []  # where no token is left to be drawn, zero everywhere
        column_of: dict[tuple[int, int], int] = {}
        for d in range(depth):
            count = 1 + max(rank for node_depth, rank in node_of if node_depth == d + 1)
            noise_here = fresh.at(torch.full_like(first_RG[:, 0], d))
            pool_RV = self._pool_of_siblings(
                first_RG[:, d], probs_RGV[:, d], window.old_RG[:, d], window.old_probs_RGV[:, d]
            )
            token_RC = first_RG[:, d : d + 1]
            if count > 1:
                more_Rc = noise_here.order(BRANCH, pool_RV, count - 1)
                token_RC = torch.cat((token_RC, more_Rc), 1)
            for rank in range(count):
                column_of[d + 1, rank] = len(column_of)
            tokens.append(token_RC)
            stages.append(without_replacement(probs_RGV[:, d], token_RC))

        # 3. Give every node the candidate of its depth and rank.
        columns = [column_of[place] for place in node_of]
        return torch.cat(tokens, 1)[:, columns], torch.cat(stages, 1)[:, columns]

    def _pool_of_siblings(
        self, first_R: Tensor, probs_RV: Tensor, old_R: Tensor, old_probs_RV: Tensor
    ) -> Tensor:
        """Return the weights that further candidates of a place are drawn from, [R, V]."""
        without_first_RV = probs_RV.scatter(1, first_R.unsqueeze(1), 0)
        if self.siblings == "target":
            return without_first_RV
        # As released: the residual's draws are the candidates, with a kept token put before them.
        left_RV = residual_probs(probs_RV, old_probs_RV, old_R)
        old_prob_R = old_probs_RV.gather(1, old_R.unsqueeze(1))[:, 0]
        kept_R = (first_R == old_R) & (old_prob_R > 0)
        left_but_first_RV = left_RV.scatter(1, first_R.unsqueeze(1), 0)
        return torch.where(kept_R[:, None], left_RV, left_but_first_RV)

    def fill(
        self, window: JacobiWindow, noise: Noise, grid_width: int, sibling: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return tokens [R, G] and the distributions they follow [R, G, V].

        `noise` is that of the window's places, of which `grid_width` are a row's with its forced
        ones. It is salted with the first place: no two windows of
        a canvas begin at the same place, so a draft shares no noise with an earlier draft, nor with
        its own acceptance.
        """
        # 1. Find the places that have no distribution; `uniform` gives them one.
        fresh = noise.salted(noise.position_RT[:, 0])
        columns, vocab = window.probs_RGV.shape[1:]
        column_G = torch.arange(columns, device=window.verified_R.device)
        new_RG = column_G >= window.verified_R.unsqueeze(1)
        new_RG1 = new_RG.unsqueeze(-1)
        probs_RGV = window.probs_RGV
        if self.init == "uniform":
            probs_RGV = torch.where(new_RG1, 1 / vocab, probs_RGV)

        # 2. Draw tokens from the distributions.
        if self.coupling == "none" or sibling:
            token_RG = fresh.race(DRAFT + sibling, probs_RGV)
        elif self.coupling == "gumbel":
            token_RG = noise.race(DRAW, probs_RGV)
        elif self.coupling == "maximal":
            token_RG = keep_or_redraw(window.old_RG, window.old_probs_RGV, probs_RGV, fresh)
        else:
            token_RG, probs_RGV = _keep_above_threshold(window, probs_RGV, fresh)
        if window.held_R is not None and self.coupling in ("maximal", "gumbel"):
            first_R = torch.where(window.held_R >= 0, window.held_R, token_RG[:, 0])
            token_RG = torch.cat((first_R.unsqueeze(1), token_RG[:, 1:]), 1)
        if self.init == "uniform":
            return _hold_forced(window, token_RG, probs_RGV)

        # 3. Make up the other tokens: each is declared as certain.
        made_up_RG = self._make_up_tokens(window, token_RG, fresh, grid_width, sibling)
        token_RG = torch.where(new_RG, made_up_RG, token_RG)
        certain_RGV = F.one_hot(token_RG, vocab).to(probs_RGV.dtype)
        return _hold_forced(window, token_RG, torch.where(new_RG1, certain_RGV, probs_RGV))

    def _make_up_tokens(
        self, window: JacobiWindow, token_RG: Tensor, fresh: Noise, grid_width: int, sibling: int
    ) -> Tensor:
        """Make up tokens for the places without a distribution, [R, G]; others mean nothing.

        Each place copies the token of its anchor. Where the anchor has no token, the place takes a
        random token that belongs to the anchor.
        """
        place_RG = fresh.position_RT
        first_R = place_RG[:, 0]
        last_R = first_R + window.verified_R - 1  # the last place with a token
        last_R1 = last_R.unsqueeze(1)

        # 1. Choose the anchors.
        if self.init == "random":
            anchor_RG = place_RG
        elif self.init == "repeat_vertical":
            anchor_RG = _anchor_above(place_RG, last_R1, grid_width)
        else:
            row_start_RG = place_RG - place_RG % grid_width
            anchor_RG = torch.maximum(last_R1, row_start_RG)

        # 2. Put the drafted tokens after the committed ones. Columns past the image are clamped.
        end = window.image_RN.shape[1] - 1
        known_RN = window.image_RN.scatter(1, place_RG.clamp(max=end), token_RG)
        if self.init == "sample_horizon":
            likeliest_R1 = window.likeliest_R.unsqueeze(1)
            known_RN = known_RN.scatter(1, last_R1.clamp(min=0), likeliest_R1)

        # 3. Copy, or draw at random.
        vocab = window.probs_RGV.shape[-1]
        anchor_noise = Noise(fresh.key_R2, anchor_RG)
        chance_RG = anchor_noise.uniform(DRAFT + sibling, 1)[..., 0]
        random_RG = (chance_RG * vocab).long()
        copied_RG = known_RN.gather(1, anchor_RG.clamp(max=end))
        return torch.where(anchor_RG <= last_R1, copied_RG, random_RG)


def _hold_forced(
    window: JacobiWindow, token_RG: Tensor, probs_RGV: Tensor
) -> tuple[Tensor, Tensor]:
    """Draft the one token that is possible at the forced places of a window.

    Any other would be rejected for sure, and all behind it.
    """
    if window.forced_RG is None:
        return token_RG, probs_RGV
    probs_RGV = hold_forced_probs(probs_RGV, window.forced_RG)
    return token_RG.masked_fill(window.forced_RG, FORCED_TOKEN), probs_RGV


def keep_or_redraw(
    old_RG: Tensor, old_probs_RGV: Tensor, probs_RGV: Tensor, fresh: Noise
) -> Tensor:
    """Draw tokens that follow `probs` and keep as many of the old ones as possible.

    This is the maximal coupling. Places whose old distribution is zero are drawn from the new one.
    """
    # 1. Keep old tokens with probability min(1, new / old).
    index_RG1 = old_RG.unsqueeze(-1)
    old_prob_RG = old_probs_RGV.gather(-1, index_RG1)[..., 0]
    new_prob_RG = probs_RGV.gather(-1, index_RG1)[..., 0]
    chance_RG = fresh.uniform(ACCEPT, 1)[..., 0]
    kept_RG = (chance_RG * old_prob_RG < new_prob_RG) & (old_prob_RG > 0)

    # 2. Redraw the others from the residual.
    residual_nV = residual_probs(
        probs_RGV.flatten(0, 1), old_probs_RGV.flatten(0, 1), old_RG.flatten()
    )
    redrawn_RG = fresh.race(RESIDUAL, residual_nV.view_as(probs_RGV))
    return torch.where(kept_RG, old_RG, redrawn_RG)


def _keep_above_threshold(
    window: JacobiWindow, probs_RGV: Tensor, fresh: Noise
) -> tuple[Tensor, Tensor]:
    """Keep old tokens, with their old distributions, where new / old is above a half; else draw.

    This is `jacobi_iteration_lumina_mgpt.py` of boyaliao/PJD.
    """
    index_RG1 = window.old_RG.unsqueeze(-1)
    old_prob_RG1 = window.old_probs_RGV.gather(-1, index_RG1)
    new_prob_RG1 = probs_RGV.gather(-1, index_RG1)
    kept_RG1 = (new_prob_RG1 > THRESHOLD * old_prob_RG1) & (old_prob_RG1 > 0)
    drawn_RG = fresh.race(DRAFT, probs_RGV)
    token_RG = torch.where(kept_RG1[..., 0], window.old_RG, drawn_RG)
    return token_RG, torch.where(kept_RG1, window.old_probs_RGV, probs_RGV)


def _anchor_above(place_RG: Tensor, last_R1: Tensor, grid_width: int) -> Tensor:
    """Return the nearest place above that has a token; if none has, the top of the column."""
    missing_RG = (place_RG - last_R1).clamp(min=0)
    rows_up_RG = (missing_RG + grid_width - 1).div(grid_width, rounding_mode="floor")
    anchor_RG = place_RG - grid_width * rows_up_RG
    return torch.where(anchor_RG < 0, place_RG % grid_width, anchor_RG)


def _chain_length(sampler: Sampler, canvas: Canvas, n: int) -> int:
    left = sampler.model.num_tokens - canvas.length - 1
    return max(0, min(n, left))


def _collect_window(
    sampler: Sampler,
    rows: Sequence[Canvas],
    verdicts: Sequence[DraftVerdict | None],
    place_RG: Tensor,
) -> JacobiWindow:
    """Collect what the last verdicts tell about the next places of every row.

    For a row without a verdict, only the committed tokens are known.
    """
    # 1. Begin without any distribution. Their dtype does not depend on what else is in the batch.
    image_RN = sampler.tokens(rows)
    device = image_RN.device
    dtype = torch.promote_types(sampler.model.dtype, torch.float32)
    columns = place_RG.shape[1]
    shape = (len(rows), columns, sampler.model.vocab)
    probs_RGV = torch.zeros(shape, dtype=dtype, device=device)
    old_probs_RGV = torch.zeros_like(probs_RGV)
    old_RG = torch.zeros_like(probs_RGV[..., 0], dtype=torch.int64)
    last_R1 = (place_RG[:, :1] - 1).clamp(min=0)
    likeliest_R = image_RN.gather(1, last_R1)[:, 0]
    verified = [0] * len(rows)
    held = [-1] * len(rows)

    # 2. Copy what each verdict has behind the last committed token.
    for r, verdict in enumerate(verdicts):
        if verdict is None:
            continue
        assert verdict.draft.probs is not None, "a followed draft says what it was drawn from"
        first = 0  # place behind which the old tokens lie: the next one, unless a token is held
        if verdict.held is not None:
            first = 1
            held[r] = verdict.held
            probs_RGV[r, 0] = verdict.probs_TV[len(verdict.path)]
        known_nodes, old_nodes = _list_behind(verdict, columns - first)
        ends = first + len(known_nodes), first + len(old_nodes)
        probs_RGV[r, first : ends[0]] = verdict.probs_TV[[1 + node for node in known_nodes]]
        old_RG[r, first : ends[1]] = verdict.draft.tokens[old_nodes]
        old_probs_RGV[r, first : ends[1]] = verdict.draft.probs[old_nodes]
        verified[r] = ends[0]
        likeliest_R[r] = verdict.probs_TV[-1].argmax()

    verified_R = torch.tensor(verified, device=device)
    held_R = torch.tensor(held, device=device)
    forced_RG = None
    if sampler.table.forced_N is not None:
        forced_RG = is_forced_at(place_RG, sampler.table.forced_N)
    return JacobiWindow(
        probs_RGV,
        verified_R,
        old_RG,
        old_probs_RGV,
        image_RN,
        likeliest_R,
        held_R,
        forced_RG,
    )


def _list_behind(verdict: DraftVerdict, columns: int) -> tuple[list[int], list[int]]:
    """List the nodes that say what of the next places: their distributions, their old tokens.

    The second list is shorter where the last of these places was not drafted.
    """
    parents = verdict.draft.parents
    if parents is None:
        parents = chain_parents(len(verdict.draft))
    known = continue_tree(parents)
    end = 1 + verdict.path[-1] if verdict.path else 0
    known_nodes = [int(node) for node in known.source_TG[end, :columns] if node >= 0]
    old_nodes = [int(node) for node in known.old_TG[end, :columns] if node >= 0]
    return known_nodes, old_nodes
