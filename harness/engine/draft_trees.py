"""Draft trees: their shapes, how a drafter grows them, and the tables that verification reads.

The nodes of a tree are drafted tokens, numbered so that parents come before children. A node names
its parent: an earlier node, or -1 for the root, which is the last committed token and no node
itself. Static trees draw children without replacement (EAGLE, LANTERN++). Dynamic trees take the
likeliest (EAGLE-2): their nodes are chosen, not drawn, so another acceptance rule applies.

Shapes: R rows, A rows that are still drafting, G nodes, T = 1 + G places (the root, then the
nodes), C siblings, c children of one place, F nodes expanded at once, k children proposed, P
proposals, V vocabulary.
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
from harness.records import Count, UserError

Parents = tuple[int, ...]
"""The parent of every node: an earlier node, or -1 for the root."""


@dataclass(frozen=True, slots=True)
class GrownTree:
    """A tree grown for one row: its tokens and parents.

    `probs_GV` holds the distributions that the tokens were drawn from, None if they were chosen.
    """

    token_G: Tensor
    parents: Parents
    probs_GV: Tensor | None


Feed = Callable[[Sequence[int], Tensor, Tensor], Tensor]
"""(rows, token_AF, parent_AF) -> probs_AFV: compute the drafter's distributions behind new nodes.

`rows` are the A rows that draft on, each with F new nodes. `parent_AF` numbers the nodes fed so far
in the order of feeding, -1 for the root.
"""


class Tree(Protocol):
    """The shape of a draft tree, and how to grow one."""

    depth: int  # tokens on the longest path
    nodes: int  # drafted tokens, at most
    fed: int  # nodes that have children, so that the drafter must be fed with them, at most
    widest: int  # of these at one depth, at most
    chosen: bool  # True if nodes are chosen, not drawn: drafts come without distributions

    def grow(
        self,
        probs_RV: Tensor,
        feed: Feed,
        noise: Noise,
        max_depth: Sequence[int],
        greedy: bool = False,
        sibling: int = 0,
    ) -> list[GrownTree]:
        """Grow a tree for each of R rows from the drafter's distributions at the roots.

        No tree becomes deeper than `max_depth` of its row allows. `noise` is that of the next
        `depth` positions. A `greedy` tree takes the likeliest children, whatever its kind. Several
        drafts of one canvas are told apart by `sibling`: each draws in random lanes of its own.
        """
        ...


def is_tree(part: object) -> bool:
    """Tell whether an object has the members of a tree's shape."""
    return all(hasattr(part, name) for name in ("depth", "nodes", "fed", "widest", "grow"))


# ------------------------------------------------------------------ static trees

PUBLISHED_TREES: dict[str, dict[str, int]] = {
    "naive_extend_57": {
        "": 5,
        "0": 4, "1": 3, "2": 3, "3": 2, "4": 1,
        "00": 4, "01": 3, "02": 3, "03": 2, "10": 2, "11": 1, "20": 1,
        "000": 4, "001": 3, "002": 2, "003": 1, "010": 2, "011": 1, "020": 1,
        "0000": 3, "0001": 2, "0010": 2, "0011": 1, "0020": 1,
    },
    "mc_sim_7b_63": {
        "": 4,
        "0": 3, "1": 2, "2": 2, "3": 1,
        "00": 3, "01": 2, "02": 2, "10": 1,
        "000": 3,
        "0000": 2,
    },
}  # fmt: skip
"""Published trees (LANTERN's and EAGLE's): children per place, named by the ranks on its path."""


class Static:
    """A fixed tree: as many children at each place as given, drawn without replacement.

    EAGLE-1 and LANTERN++ draft such trees. `children` names a published tree, or gives the number
    of children at each place: "" is the root, "0" its first child, "01" that child's second. Raises
    UserError for an unknown name, a place without its parent, a rank above 9.
    """

    chosen = False

    def __init__(self, children: str | Mapping[str, Count]) -> None:
        counts = _read_child_counts(children)
        nodes = _name_nodes(counts)
        number = {"": -1}
        for i, node in enumerate(nodes):
            number[node] = i
        self.depth = len(nodes[-1])
        self.nodes = len(nodes)
        self.parents: Parents = tuple(number[node[:-1]] for node in nodes)
        self.depths = tuple(len(node) for node in nodes)  # tokens on the path to each node
        self.ranks = tuple(int(node[-1]) for node in nodes)  # of each node among its siblings
        self._counts = counts
        self._number = number

        # The places that have children, by depth: entry 0 holds the root.
        self._levels: list[list[str]] = [[] for _ in range(self.depth)]
        for place in ["", *nodes]:
            if place in counts:
                self._levels[len(place)].append(place)
        self.widest = max(map(len, self._levels))
        self.fed = sum(map(len, self._levels[1:]))

        # How many nodes are no deeper than 0, 1, ..., `depth`.
        self._nodes_to_depth: list[int] = []
        for d in range(self.depth + 1):
            self._nodes_to_depth.append(sum(len(node) <= d for node in nodes))

    def grow(
        self,
        probs_RV: Tensor,
        feed: Feed,
        noise: Noise,
        max_depth: Sequence[int],
        greedy: bool = False,
        sibling: int = 0,
    ) -> list[GrownTree]:
        """Draw the tree depth by depth: see `Tree.grow`."""
        probs_RFV = probs_RV.unsqueeze(1)  # behind the places of the current depth
        feeding_number = {"": -1}
        tokens: list[Tensor] = []
        child_probs: list[Tensor] = []

        for d, level in enumerate(self._levels):
            # 1. Draw the children of every place at this depth.
            noise_here = noise.at(torch.full_like(noise.position_RT[:, 0], d))
            for f, place in enumerate(level):
                count = self._counts[place]
                if greedy:
                    tokens.append(find_largest(probs_RFV[:, f], count))
                else:
                    lane = DRAFT + sibling * self.widest + f
                    token_Rc = noise_here.order(lane, probs_RFV[:, f], count)
                    tokens.append(token_Rc)
                    child_probs.append(without_replacement(probs_RFV[:, f], token_Rc))

            # 2. Stop at the last depth, or where no row may become deeper.
            active = [r for r, most in enumerate(max_depth) if most > d + 1]
            if d + 1 == self.depth or not active:
                break

            # 3. Feed the new nodes that have children; rows that stopped keep zeros.
            next_level = self._levels[d + 1]
            nodes_F = [self._number[place] for place in next_level]
            token_RF = torch.cat(tokens, 1)[:, nodes_F]
            parent_F = torch.tensor([feeding_number[place[:-1]] for place in next_level])
            for place in next_level:
                feeding_number[place] = len(feeding_number) - 1
            probs_AFV = feed(active, token_RF[active], parent_F.expand(len(active), -1))
            probs_RFV = probs_AFV.new_zeros((len(max_depth), *probs_AFV.shape[1:]))
            probs_RFV[active] = probs_AFV

        probs_RGV = None if greedy else torch.cat(child_probs, 1)
        return self._cut_to_depth(max_depth, torch.cat(tokens, 1), probs_RGV)

    def count_nodes(self, depth: int) -> int:
        """Count the nodes that are no deeper than this: a tree cut there has the first of them."""
        return self._nodes_to_depth[min(depth, self.depth)]

    def _cut_to_depth(
        self, max_depth: Sequence[int], token_RG: Tensor, probs_RGV: Tensor | None
    ) -> list[GrownTree]:
        grown = []
        for r, most in enumerate(max_depth):
            count = self.count_nodes(most)
            probs_GV = None if probs_RGV is None else probs_RGV[r, :count]
            grown.append(GrownTree(token_RG[r, :count], self.parents[:count], probs_GV))
        return grown


class Proactive(Static):
    """A tree of `width` children at each of its first places, and a chain behind the first branch.

    SJD-PAC (arXiv 2603.18599) drafts such trees: a next token is likely to be rejected where the
    last window was, so several are tried there. `levels` counts the root, which is fed too, and
    `window` all positions of a forward: the tree has window - 1 nodes, of which those at depths
    1 to levels - 1 branch. A width of 1 is a chain. Raises UserError for values out of range, and
    for a window that the branching part does not fit into.
    """

    def __init__(self, width: Count = 3, levels: Count = 3, window: Count = 64) -> None:
        if not 1 <= width <= 10:
            raise UserError(f"tree.width={width}: give 1 to 10 children a place")
        if levels < 2:
            raise UserError(f"tree.levels={levels}: must be at least 2, the root's level included")
        branching = sum(width**depth for depth in range(levels))
        if window < max(2, branching):
            raise UserError(
                f"tree.window={window}: {width} children at {levels - 1} depths and the root take "
                f"{branching} positions: set tree.window={max(2, branching)} or more"
            )
        counts: dict[str, int] = {}
        level = [""]
        for _ in range(levels - 1):
            counts |= dict.fromkeys(level, width)
            level = [place + str(rank) for place in level for rank in range(width)]
        for length in range(window - branching):
            counts["0" * (levels - 1 + length)] = 1
        super().__init__(counts)


@dataclass(frozen=True, slots=True)
class Continuation:
    """Where the nodes of a tree go on after its verification, by the place where the walk ended.

    At an end (0 the root, 1 + g node g) at depth a, a token was drawn that is no node. Column j
    stands for the j-th place behind it.
    """

    source_TG: np.ndarray  # int64: the node whose distribution is that of the place, -1 none
    old_TG: np.ndarray  # int64: the node that was drafted for the place, -1 none


@lru_cache(maxsize=64)
def continue_tree(parents: Parents) -> Continuation:
    """Tabulate which nodes say what of the places behind the next token.

    The node at depth d speaks of the place at depth d + 1: that on the walk's way, prolonged by
    first children while the tree allows it, and else that of the branch of all first children.
    """
    first_child: dict[int, int] = {}
    for node, parent in enumerate(parents):
        first_child.setdefault(parent, node)
    main = _follow(first_child, -1)
    depth_of = {-1: 0}
    for node, parent in enumerate(parents):
        depth_of[node] = depth_of[parent] + 1

    depth = max(depth_of.values())
    source_TG = np.full((1 + len(parents), depth), -1)
    old_TG = np.full_like(source_TG, -1)
    for end in range(-1, len(parents)):
        way = _follow(first_child, end)
        behind = [*way, *main[depth_of[end] + len(way) :]]
        source_TG[1 + end, : len(behind)] = behind
        for column, node in enumerate(behind):
            old = first_child.get(node, -1)
            on_main = depth_of[node]
            if old < 0 and on_main < len(main):
                old = main[on_main]
            old_TG[1 + end, column] = old
    return Continuation(source_TG, old_TG)


def _follow(first_child: Mapping[int, int], place: int) -> list[int]:
    """List the nodes below a place along first children."""
    way: list[int] = []
    while place in first_child:
        place = first_child[place]
        way.append(place)
    return way


def _read_child_counts(children: str | Mapping[str, int]) -> dict[str, int]:
    """Children per place, of a published tree or as given. Raises UserError for bad shapes."""
    if isinstance(children, str):
        if children not in PUBLISHED_TREES:
            raise UserError(
                f"tree.children={children}: choose {', '.join(PUBLISHED_TREES)}, "
                "or give the children per place"
            )
        children = PUBLISHED_TREES[children]

    counts = {str(place): int(count) for place, count in children.items() if count}
    for place, count in counts.items():
        if not _is_place(place, counts) or not 0 < count <= 10:
            raise UserError(
                f"tree.children[{place!r}]={count}: "
                "a place follows its parent's, with 1 to 10 children"
            )
    if not counts:
        raise UserError("tree.children is empty: draft at least one token")
    return counts


def _name_nodes(counts: Mapping[str, int]) -> list[str]:
    """Nodes by the ranks on their path, in drafting order: depth by depth, then by rank."""
    nodes = []
    for place, count in counts.items():
        for rank in range(count):
            nodes.append(place + str(rank))
    return sorted(nodes, key=lambda node: (len(node), node))


def _is_place(place: str, counts: Mapping[str, int]) -> bool:
    """True for the root, and for a child that its parent has."""
    if not place:
        return True
    rank = place[-1]
    return rank.isdigit() and int(rank) < counts.get(place[:-1], 0)


def without_replacement(probs_RV: Tensor, token_Rc: Tensor) -> Tensor:
    """Compute what tokens drawn one after another without replacement were drawn from, [R, c, V].

    The i-th distribution has no mass on the tokens before it. Where nothing is left it is zero
    everywhere: no such draw is possible.
    """
    children = token_Rc.shape[1]
    left_RcV = probs_RV.unsqueeze(1).repeat(1, children, 1)
    for i in range(children - 1):
        later = children - 1 - i
        drawn_Rc1 = token_Rc[:, i, None, None].expand(-1, later, 1)
        left_RcV[:, i + 1 :].scatter_(2, drawn_Rc1, 0)
    total_Rc1 = left_RcV.sum(2, keepdim=True)
    return torch.where(total_Rc1 > 0, left_RcV / total_Rc1, 0)


def find_largest(values: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` largest values over the last axis, ties to the lowest."""
    return values.sort(dim=-1, descending=True, stable=True).indices[..., :count]


# ------------------------------------------------------------------ dynamic trees


@dataclass(slots=True)
class _Frontier:
    """The nodes [R, F] of the current depth that propose children."""

    token_RF: Tensor
    score_RF: Tensor  # float64: log-probability of the path from the root
    fed_parent_RF: Tensor  # the parent's number among the nodes fed so far, -1 for the root
    proposal_RF: Tensor  # the node's own number among all proposals


@dataclass(slots=True)
class _Proposals:
    """All nodes [R, P] proposed so far, of which the likeliest become the tree."""

    token_RP: Tensor
    parent_RP: Tensor  # the parent's number among the proposals, -1 for the root
    score_RP: Tensor  # float64: log-probability of the path; -inf where there is no proposal


class Dynamic:
    """A tree that grows where the drafter is sure: it keeps the likeliest paths (EAGLE-2).

    At each of `depth` depths the `top_k` likeliest nodes propose their `top_k` likeliest tokens; of
    all proposals the `nodes` likeliest are kept, by the probability of the path. Published: 58
    nodes, depth 5, top_k 10. Raises UserError for values below 1, and for more nodes than are ever
    proposed.
    """

    chosen = True

    def __init__(self, nodes: Count = 58, depth: Count = 5, top_k: Count = 10) -> None:
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
    ) -> list[GrownTree]:
        """Choose the likeliest nodes depth by depth: see `Tree.grow`. Nothing is random."""
        frontier = self._choose_children_of_root(probs_RV)
        root_RF = torch.full_like(frontier.token_RF, -1)
        proposals = [_Proposals(frontier.token_RF, root_RF, frontier.score_RF)]
        for d in range(1, self.depth):
            active = [r for r, most in enumerate(max_depth) if most > d]
            if not active:
                break
            active_A = torch.tensor(active, dtype=torch.int64, device=probs_RV.device)
            token_AF = frontier.token_RF[active_A]
            probs_AFV = feed(active, token_AF, frontier.fed_parent_RF[active_A])
            proposed = _propose_children(frontier, probs_AFV, active_A)
            frontier = _choose_frontier(proposed, d, frontier.token_RF.shape[1])
            proposals.append(proposed)

        everything = _Proposals(
            torch.cat([some.token_RP for some in proposals], 1),
            torch.cat([some.parent_RP for some in proposals], 1),
            torch.cat([some.score_RP for some in proposals], 1),
        )
        return _keep_likeliest(everything, self.nodes)

    def _choose_children_of_root(self, probs_RV: Tensor) -> _Frontier:
        """The likeliest children of the root."""
        children = min(self.top_k, probs_RV.shape[1])
        token_RF = find_largest(probs_RV, children)
        proposal_F = torch.arange(children, device=probs_RV.device)
        return _Frontier(
            token_RF=token_RF,
            score_RF=probs_RV.double().gather(1, token_RF).log(),
            fed_parent_RF=torch.full_like(token_RF, -1),
            proposal_RF=proposal_F.expand(len(probs_RV), children),
        )


def _propose_children(frontier: _Frontier, probs_AFV: Tensor, active_A: Tensor) -> _Proposals:
    """The k likeliest children of each of the k frontier nodes, [R, k k]."""
    rows, k = frontier.token_RF.shape
    token_AFk = find_largest(probs_AFV, k)
    log_prob_AFk = probs_AFV.double().gather(2, token_AFk).log()
    score_AFk = frontier.score_RF[active_A].unsqueeze(2) + log_prob_AFk

    token_RP = torch.zeros((rows, k * k), dtype=torch.int64, device=frontier.token_RF.device)
    score_RP = frontier.score_RF.new_full((rows, k * k), -torch.inf)
    token_RP[active_A] = token_AFk.flatten(1)
    score_RP[active_A] = score_AFk.flatten(1)
    return _Proposals(token_RP, frontier.proposal_RF.repeat_interleave(k, 1), score_RP)


def _choose_frontier(proposed: _Proposals, depth: int, k: int) -> _Frontier:
    """The k likeliest of the nodes proposed at one depth, which propose the next ones.

    Proposals are numbered through: k children of the root, then k k at each depth. Fed nodes are
    numbered likewise, k at each depth.
    """
    best_RF = find_largest(proposed.score_RP, k)
    first_fed = (depth - 1) * k
    first_proposal = k + (depth - 1) * k * k
    return _Frontier(
        token_RF=proposed.token_RP.gather(1, best_RF),
        score_RF=proposed.score_RP.gather(1, best_RF),
        fed_parent_RF=first_fed + best_RF // k,
        proposal_RF=first_proposal + best_RF,
    )


def _keep_likeliest(proposals: _Proposals, nodes: int) -> list[GrownTree]:
    """Trees of the likeliest proposals, in the order of proposing, so that parents come first."""
    count = proposals.score_RP.shape[1]

    # 1. Choose the likeliest; `count` stands for none and is sorted to the end.
    best_RG = find_largest(proposals.score_RP, nodes)
    nothing_RG = proposals.score_RP.gather(1, best_RG) == -torch.inf
    kept_RG = best_RG.masked_fill(nothing_RG, count).sort(1).values
    parent_RG = proposals.parent_RP.gather(1, kept_RG.clamp(max=count - 1))

    # 2. Renumber the parents; a likely node's parent is likelier still, so it was kept.
    grown = []
    table = torch.stack((kept_RG, parent_RG)).tolist()
    for r, (kept, parents) in enumerate(zip(*table, strict=True)):
        node_of = {proposal: g for g, proposal in enumerate(kept) if proposal < count}
        length = len(node_of)
        renumbered = tuple(node_of.get(parent, -1) for parent in parents[:length])
        token_G = proposals.token_RP[r, kept_RG[r, :length]]
        grown.append(GrownTree(token_G, renumbered, None))
    return grown


# ------------------------------------------------------------------ who is whose parent


@dataclass(frozen=True, slots=True)
class Forest:
    """The trees of R drafts as tables, padded to G nodes each.

    A padding node is nobody's child and has depth 0.
    """

    depth_RT: np.ndarray  # int64: tokens on the path to a place, 0 at the root
    sees_RTG: np.ndarray  # bool: the nodes on the path to a place, itself included
    child_RTC: np.ndarray  # int64: the children of a place in drafting order, padded with -1

    @property
    def depth(self) -> int:
        """Count the tokens on the longest path of all trees."""
        return int(self.depth_RT.max(initial=0))


@lru_cache(maxsize=4)
def index_trees(parents: tuple[Parents, ...], nodes: int) -> Forest:
    """Tabulate depths, ancestors and children of trees, padded to `nodes` nodes each.

    Raises ValueError for a parent that is no earlier node.
    """
    # 1. Pad.
    trees = len(parents)
    parent_RG = np.full((trees, nodes), -1)
    real_RG = np.zeros((trees, nodes), dtype=bool)
    for r, parents_G in enumerate(parents):
        parent_RG[r, : len(parents_G)] = parents_G
        real_RG[r, : len(parents_G)] = True
    if not ((parent_RG >= -1) & (parent_RG < np.arange(nodes))).all():
        raise ValueError(f"a draft tree names a parent that is no earlier node: {parents}")

    # 2. Follow the nodes in order: each continues the path of the place above it.
    row_R = np.arange(trees)
    depth_RT = np.zeros((trees, 1 + nodes), dtype=np.int64)
    sees_RTG = np.zeros((trees, 1 + nodes, nodes), dtype=bool)
    children_RT = np.zeros_like(depth_RT)
    rank_RG = np.zeros_like(parent_RG)
    for g in range(nodes):
        above_R = parent_RG[:, g] + 1
        sees_RTG[:, g + 1] = sees_RTG[row_R, above_R]
        sees_RTG[:, g + 1, g] = True
        depth_RT[:, g + 1] = (depth_RT[row_R, above_R] + 1) * real_RG[:, g]
        rank_RG[:, g] = children_RT[row_R, above_R]
        children_RT[row_R, above_R] += real_RG[:, g]

    # 3. List the children of every place.
    siblings = max(1, children_RT.max(initial=0))
    child_RTC = np.full((trees, 1 + nodes, siblings), -1)
    row_n, node_n = real_RG.nonzero()
    above_n = parent_RG[row_n, node_n] + 1
    child_RTC[row_n, above_n, rank_RG[row_n, node_n]] = node_n
    return Forest(depth_RT, sees_RTG, child_RTC)


def chain_parents(length: int) -> Parents:
    """Return the parents of a tree of one path."""
    return tuple(range(-1, length - 1))


def paths(parents: Parents) -> list[list[int]]:
    """List the nodes from the root to every leaf, leaves in drafting order."""
    inner = set(parents)
    found = []
    for leaf in range(len(parents)):
        if leaf in inner:
            continue
        path = [leaf]
        while parents[path[-1]] >= 0:
            path.append(parents[path[-1]])
        found.append(path[::-1])
    return found
