"""Draft trees: what shape they have, how a drafter grows them, and who is whose parent.

A tree's nodes are drafted tokens, parents before children; a node names its parent, an earlier node
or -1 for the last committed token (the root, which is no node). Static trees draw children without
replacement (EAGLE, LANTERN++); dynamic trees take the likeliest (EAGLE-2), so they are chosen, not
drawn, and another acceptance rule applies.

Shapes: R rows, G nodes, T = 1 + G places (the root, then the nodes), C siblings, c children of one
place, F nodes fed at once, k children proposed, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from harness.kernels.noise import DRAFT, Noise
from harness.records import UserError

Parents = tuple[int, ...]
"""Parent of every node: an earlier node, or -1 for the root."""


@dataclass(frozen=True, slots=True)
class Grown:
    """A tree grown for one row: `token_G`, its parents, and `probs_GV` each token was drawn from
    (None: chosen).
    """

    token_G: Tensor
    parents: Parents
    probs_GV: Tensor | None


Feed = Callable[[Sequence[int], Tensor, Tensor], Tensor]
"""(rows, token_AF, parent_AF) -> probs_AFV: laws behind F new nodes of A rows; parents index the
nodes fed so far.
"""


class Tree(Protocol):
    """The shape of a draft tree."""

    depth: int  # longest path, the root not counted
    nodes: int  # at most
    fed: int  # nodes whose laws a drafter computes, at most
    widest: int  # of them at one depth, at most
    chosen: bool  # its nodes are chosen, not drawn: drafts come without laws

    def grow(
        self,
        probs_RV: Tensor,
        feed: Feed,
        noise: Noise,
        max_depth: Sequence[int],
        greedy: bool = False,
        sibling: int = 0,
    ) -> list[Grown]:
        """Trees of R rows from the laws at their roots, none deeper than its row's `room`.

        `noise` is that of the next `depth` places; a `greedy` tree is chosen in the order of the
        laws, whatever its kind. Siblings draw in lanes of their own.
        """
        ...


# ------------------------------------------------------------------ static trees

NAMED: dict[str, dict[str, int]] = {
    "naive_extend_57": {
        "": 5, "0": 4, "1": 3, "2": 3, "3": 2, "4": 1,
        "00": 4, "01": 3, "02": 3, "03": 2, "10": 2, "11": 1, "20": 1,
        "000": 4, "001": 3, "002": 2, "003": 1, "010": 2, "011": 1, "020": 1,
        "0000": 3, "0001": 2, "0010": 2, "0011": 1, "0020": 1,
    },
    "mc_sim_7b_63": {
        "": 4, "0": 3, "1": 2, "2": 2, "3": 1, "00": 3, "01": 2, "02": 2, "10": 1, "000": 3, "0000": 2,
    },
}  # fmt: skip
"""Published trees: children kept at each place, named by the ranks on the way to it (LANTERN's and
EAGLE's).
"""


class Static:
    """A fixed tree: at each place so many children, drawn without replacement (EAGLE-1, LANTERN++).

    `children` names a published tree, or gives the number of children at each place: "" is the
    root, "0" its first child, "01" that child's second. Raises UserError for an unknown name, a
    place without its parent, a rank above 9.
    """

    chosen = False

    def __init__(self, children: str | Mapping[str, int]) -> None:
        if isinstance(children, str):
            if children not in NAMED:
                raise UserError(
                    f"tree.children={children}: choose {', '.join(NAMED)}, or give the children per place"
                )
            children = NAMED[children]
        counts = {str(place): int(count) for place, count in children.items() if count}
        for place, count in counts.items():
            parent = place[:-1]
            rank = place[-1:]
            known = not place or (rank.isdigit() and int(rank) < counts.get(parent, 0))
            if not known or not 0 < count <= 10:
                raise UserError(
                    f"tree.children[{place!r}]={count}: a place follows its parent's, with 1 to 10 children"
                )
        if not counts:
            raise UserError("tree.children is empty: draft at least one token")
        nodes = [place + str(rank) for place in counts for rank in range(counts[place])]
        nodes.sort(key=lambda place: (len(place), place))
        self.depth = len(nodes[-1])
        self.nodes = len(nodes)
        self._counts = counts
        index = {place: i for i, place in enumerate(["", *nodes])}
        self.parents: Parents = tuple(index[place[:-1]] - 1 for place in nodes)
        inner = [place for place in ["", *nodes] if place in counts]
        self._levels = [[place for place in inner if len(place) == d] for d in range(self.depth)]
        self._first = [
            index[level[0] + "0"] - 1 for level in self._levels
        ]  # first node of each depth
        self._node = {place: i - 1 for place, i in index.items()}
        self.widest = max(map(len, self._levels))
        self.fed = sum(map(len, self._levels[1:]))

    def grow(
        self,
        probs_RV: Tensor,
        feed: Feed,
        noise: Noise,
        max_depth: Sequence[int],
        greedy: bool = False,
        sibling: int = 0,
    ) -> list[Grown]:
        probs_RFV = probs_RV.unsqueeze(1)
        fed = {"": -1}
        tokens = []
        stages = []
        for d, level in enumerate(self._levels):
            here = noise.at(torch.full_like(noise.position_RT[:, 0], d))
            for f, place in enumerate(level):
                lane = DRAFT + sibling * self.widest + f
                count = self._counts[place]
                token_Rc = (
                    likeliest(probs_RFV[:, f], count)
                    if greedy
                    else here.order(lane, probs_RFV[:, f], count)
                )
                tokens.append(token_Rc)
                if not greedy:
                    stages.append(without_replacement(probs_RFV[:, f], token_Rc))
            active = [r for r, most in enumerate(max_depth) if most > d + 1]
            if d + 1 == self.depth or not active:
                break
            following = self._levels[d + 1]
            token_RG = torch.cat(tokens, 1)
            token_RF = token_RG[:, [self._node[place] for place in following]]
            parent_F = torch.tensor([fed[place[:-1]] for place in following])
            fed |= {place: len(fed) - 1 + i for i, place in enumerate(following)}
            probs_AFV = feed(active, token_RF[active], parent_F.expand(len(active), -1))
            probs_RFV = probs_AFV.new_zeros((len(max_depth), *probs_AFV.shape[1:]))
            probs_RFV[active] = probs_AFV
        token_RG = torch.cat(tokens, 1)
        stage_RGV = None if greedy else torch.cat(stages, 1)
        grown = []
        for r, most in enumerate(max_depth):
            count = self._first[most] if most < self.depth else self.nodes
            grown.append(
                Grown(
                    token_RG[r, :count],
                    self.parents[:count],
                    None if stage_RGV is None else stage_RGV[r, :count],
                )
            )
        return grown


def without_replacement(probs_RV: Tensor, token_Rc: Tensor) -> Tensor:
    """Laws [R, c, V] that tokens drawn one after another without replacement come from.

    The i-th has no mass on the tokens before it. Where nothing is left it is zero everywhere: no
    such draw is possible.
    """
    left_RcV = probs_RV.unsqueeze(1).repeat(1, token_Rc.shape[1], 1)
    for i in range(token_Rc.shape[1] - 1):
        left_RcV[:, i + 1 :].scatter_(
            2, token_Rc[:, i, None, None].expand(-1, token_Rc.shape[1] - i - 1, 1), 0
        )
    total_Rc1 = left_RcV.sum(2, keepdim=True)
    return torch.where(total_Rc1 > 0, left_RcV / total_Rc1, 0)


def likeliest(probs: Tensor, count: int) -> Tensor:
    """The `count` likeliest tokens over the last axis, ties to the lowest index."""
    return probs.sort(dim=-1, descending=True, stable=True).indices[..., :count]


# ------------------------------------------------------------------ dynamic trees


class Dynamic:
    """A tree that goes where the drafter is sure: its likeliest nodes by the probability of the
    path (EAGLE-2).

    At each of `depth` depths the `top_k` likeliest nodes propose their `top_k` likeliest tokens; of
    all proposals the `nodes` likeliest are kept. Published: 58 nodes, depth 5, top_k 10. Raises
    UserError for values below 1, and for more nodes than are ever proposed.
    """

    chosen = True

    def __init__(self, nodes: int = 58, depth: int = 5, top_k: int = 10) -> None:
        if min(nodes, depth, top_k) < 1:
            raise UserError(
                f"tree.nodes={nodes}, depth={depth}, top_k={top_k}: each must be at least 1"
            )
        proposed = top_k + (depth - 1) * top_k**2
        if nodes > proposed:
            raise UserError(
                f"tree.nodes={nodes}: depth {depth} and top_k {top_k} propose {proposed} at most"
            )
        self.nodes = nodes
        self.depth = depth
        self.top_k = top_k
        self.fed = (depth - 1) * top_k
        self.widest = top_k

    def grow(
        self,
        probs_RV: Tensor,
        feed: Feed,
        noise: Noise,
        max_depth: Sequence[int],
        greedy: bool = False,
        sibling: int = 0,
    ) -> list[Grown]:
        rows = len(probs_RV)
        k = min(self.top_k, probs_RV.shape[1])
        token_RF = likeliest(probs_RV, k)
        score_RF = probs_RV.double().gather(1, token_RF).log()
        parent_RF = torch.full_like(token_RF, -1)
        pools = [(token_RF, parent_RF, score_RF)]
        origin_RF = torch.arange(k, device=probs_RV.device).expand(
            rows, k
        )  # the frontier's numbers in the pool
        for d in range(1, self.depth):
            active = [r for r, most in enumerate(max_depth) if most > d]
            if not active:
                break
            row_A = _index(active, probs_RV)
            probs_AFV = feed(active, token_RF[row_A], parent_RF[row_A])
            token_AFk = likeliest(probs_AFV, k)
            score_AFk = score_RF[row_A].unsqueeze(2) + probs_AFV.double().gather(2, token_AFk).log()
            token_Rn = torch.zeros((rows, k * k), dtype=torch.int64, device=probs_RV.device)
            score_Rn = score_RF.new_full((rows, k * k), -torch.inf)
            token_Rn[row_A] = token_AFk.flatten(1)
            score_Rn[row_A] = score_AFk.flatten(1)
            pools.append((token_Rn, origin_RF.repeat_interleave(k, 1), score_Rn))
            best_RF = likeliest(score_Rn, k)
            token_RF = token_Rn.gather(1, best_RF)
            score_RF = score_Rn.gather(1, best_RF)
            origin_RF = k + (d - 1) * k * k + best_RF
            parent_RF = (d - 1) * k + best_RF // k
        token_RP, parent_RP, score_RP = (torch.cat(parts, 1) for parts in zip(*pools, strict=True))
        kept_RG = likeliest(score_RP, self.nodes)
        kept_RG = (
            kept_RG.masked_fill(score_RP.gather(1, kept_RG) == -torch.inf, score_RP.shape[1])
            .sort(1)
            .values
        )
        table = torch.stack(
            (kept_RG, parent_RP.gather(1, kept_RG.clamp(max=score_RP.shape[1] - 1)))
        ).tolist()
        grown = []
        for r, (kept, parents) in enumerate(zip(*table, strict=True)):
            number = {
                origin: node for node, origin in enumerate(kept) if origin < score_RP.shape[1]
            }
            chosen = tuple(number.get(parent, -1) for parent in parents[: len(number)])
            grown.append(Grown(token_RP[r, kept_RG[r, : len(number)]], chosen, None))
        return grown


def _index(rows: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64, device=like.device)


# ------------------------------------------------------------------ who is whose parent


@dataclass(frozen=True, slots=True)
class Forest:
    """The trees of R drafts, padded to G nodes each; a padding node is nobody's child and has depth
    0.
    """

    depth_RT: np.ndarray  # int64: the root's is 0
    sees_RTG: np.ndarray  # bool: the nodes on the way to a place, itself included
    child_RTC: (
        np.ndarray
    )  # int64: the nodes below a place in drafting order, -1 where there is none

    @property
    def depth(self) -> int:
        return int(self.depth_RT.max(initial=0))


@lru_cache(maxsize=4)
def forest(parents: tuple[Parents, ...], nodes: int) -> Forest:
    """Depths, ancestors and children of some trees. Raises ValueError for a parent that is no
    earlier node.
    """
    rows = np.arange(len(parents))
    parent_RG = np.full((len(parents), nodes), -1)
    real_RG = np.zeros((len(parents), nodes), dtype=bool)
    for r, parent in enumerate(parents):
        parent_RG[r, : len(parent)] = parent
        real_RG[r, : len(parent)] = True
    if not ((parent_RG >= -1) & (parent_RG < np.arange(nodes))).all():
        raise ValueError(f"a draft tree names a parent that is no earlier node: {parents}")
    depth_RT = np.zeros((len(parents), 1 + nodes), dtype=np.int64)
    born_RT = np.zeros_like(depth_RT)
    rank_RG = np.zeros_like(parent_RG)
    sees_RTG = np.zeros((len(parents), 1 + nodes, nodes), dtype=bool)
    for g in range(nodes):
        above = parent_RG[:, g] + 1
        sees_RTG[:, g + 1] = sees_RTG[rows, above]
        sees_RTG[:, g + 1, g] = True
        depth_RT[:, g + 1] = (depth_RT[rows, above] + 1) * real_RG[:, g]
        rank_RG[:, g] = born_RT[rows, above]
        born_RT[rows, above] += real_RG[:, g]
    child_RTC = np.full((*depth_RT.shape, max(1, born_RT.max(initial=0))), -1)
    row, node = real_RG.nonzero()
    child_RTC[row, parent_RG[row, node] + 1, rank_RG[row, node]] = node
    return Forest(depth_RT, sees_RTG, child_RTC)


def chain(length: int) -> Parents:
    """The parents of a tree of one branch."""
    return tuple(range(-1, length - 1))


def paths(parents: Parents) -> list[list[int]]:
    """Nodes from the root to every leaf, leaves in drafting order."""
    inner = set(parents)
    found = []
    for leaf in range(len(parents)):
        if leaf not in inner:
            path = [leaf]
            while parents[path[-1]] >= 0:
                path.append(parents[path[-1]])
            found.append(path[::-1])
    return found
