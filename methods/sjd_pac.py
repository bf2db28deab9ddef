"""SJD-PAC's released choice among the branches of a tree, which is not lossless.

The paper is arXiv 2603.18599. The method itself is `Speculative` with the drafter `Jacobi` (maximal
coupling is its adaptive continuation) over a `Proactive` tree, under any rule for trees; with
`exact` it keeps the target's distribution. This rule is for comparison with what was published.

Shapes: R rows, G nodes of a tree, T = 1 + G places, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from harness import ACCEPT, DRAW, RESIDUAL, Drafts, Noise, exact, residual_probs, token_prob


def longest(probs_RTV: Tensor, drafts: Drafts, noise: Noise) -> tuple[Tensor, Tensor]:
    """Accept the longest branch whose tokens all pass, even if an elder sibling passed: a `Rule`.

    Every node is tested against what its elder siblings leave, had all of them been rejected, and
    so is the next token drawn. This is what KangJialiang/SJD-PAC is described to do; it favours
    tokens that long branches follow, and loses the target's distribution where younger siblings
    have children of their own. Chains are verified by `exact`.
    """
    trees = drafts.forest
    if trees is None:
        return exact(probs_RTV, drafts, noise)

    # 1. Test all nodes in drafting order, parents and elder siblings first.
    rows, nodes = drafts.token_RG.shape
    row_R = torch.arange(rows, device=probs_RTV.device)
    above_RG, rank_RG = _place_nodes(trees.child_RTC, row_R.device)
    depth_RG = torch.from_numpy(trees.depth_RT).to(row_R.device)[:, 1:]
    uniform_RTC = noise.uniform(ACCEPT, trees.child_RTC.shape[2])
    left_RTV = probs_RTV.clone()
    reached_RT = torch.zeros((rows, 1 + nodes), dtype=torch.bool, device=row_R.device)
    reached_RT[:, 0] = True
    rejected_RT = torch.zeros_like(reached_RT)
    for g in range(nodes):
        above_R = above_RG[:, g].clamp(min=0)
        left_RV = left_RTV[row_R, above_R]
        draft_probs_RV = drafts.probs_RGV[:, g]
        token_R = drafts.token_RG[:, g]
        draft_prob_R = token_prob(draft_probs_RV, token_R)
        uniform_R = uniform_RTC[row_R, (depth_RG[:, g] - 1).clamp(min=0), rank_RG[:, g]]
        tested_R = (above_RG[:, g] >= 0) & (draft_prob_R > 0)
        passes_R = tested_R & (uniform_R * draft_prob_R < token_prob(left_RV, token_R))
        reached_RT[:, g + 1] = reached_RT[row_R, above_R] & passes_R
        rejected_RT[row_R, above_R] |= tested_R
        residual_RV = residual_probs(left_RV, draft_probs_RV, token_R)
        residual_RV = residual_RV / residual_RV.sum(1, keepdim=True)
        left_RTV[row_R, above_R] = torch.where(tested_R[:, None], residual_RV, left_RV)

    # 2. Take the deepest node that is reached, the first of equals, and go back up to the root.
    depth_RT = torch.cat((torch.zeros_like(depth_RG[:, :1]), depth_RG), 1)
    end_R = torch.where(reached_RT, depth_RT, -1).argmax(1)
    length_R = depth_RT[row_R, end_R]
    path_RG = torch.full_like(drafts.token_RG, -1)
    place_R = end_R
    for _ in range(trees.depth):
        step_R = depth_RT[row_R, place_R] - 1
        is_node_R = place_R > 0
        column_R = step_R.clamp(min=0)
        path_RG[row_R, column_R] = torch.where(is_node_R, place_R - 1, path_RG[row_R, column_R])
        place_R = torch.where(is_node_R, above_RG[row_R, (place_R - 1).clamp(min=0)], place_R)

    # 3. Draw the next token from what the children of its end leave.
    noise_here = noise.at(length_R)
    left_R1V = left_RTV[row_R, end_R].unsqueeze(1)
    replacement_R = noise_here.race(RESIDUAL, left_R1V)[:, 0]
    bonus_R = noise_here.race(DRAW, left_R1V)[:, 0]
    return path_RG, torch.where(rejected_RT[row_R, end_R], replacement_R, bonus_R)


def _place_nodes(child_RTC: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the place above every node, -1 for padding, and its rank there, [R, G] each."""
    rows, places, _ = child_RTC.shape
    above_RG = np.full((rows, places - 1), -1)
    rank_RG = np.zeros_like(above_RG)
    row_n, place_n, rank_n = (child_RTC >= 0).nonzero()
    node_n = child_RTC[row_n, place_n, rank_n]
    above_RG[row_n, node_n] = place_n
    rank_RG[row_n, node_n] = rank_n
    return torch.from_numpy(above_RG).to(device), torch.from_numpy(rank_RG).to(device)
