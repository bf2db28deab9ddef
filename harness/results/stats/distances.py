"""Distances between two sets of pictures, by the features of their pictures.

A feature set is an array [N, D]: a row is a picture. All arithmetic is float64: float32 is wrong in
the third digit. Fréchet distance (FID, where the features are Inception's): Heusel et al., 2017,
arXiv 1706.08500, equation 6. Kernel distance (KID): Binkowski et al., 2018, arXiv 1801.01401.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from harness.records import UserError


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean [D] and covariance [D, D] of a feature set, the covariance over N - 1."""

    mean: np.ndarray
    covariance: np.ndarray


@dataclass(frozen=True, slots=True)
class Frechet:
    """A Fréchet distance, squared as usual, and its two parts."""

    mean_term: float
    covariance_term: float

    @property
    def value(self) -> float:
        return self.mean_term + self.covariance_term


@dataclass(frozen=True, slots=True)
class Estimate:
    """A distance, its standard error, and its pseudo-values.

    The mean of the pseudo-values [N] is the distance, so that whatever pairs, resamples and ranks
    means of prompts serves distances, too.
    """

    value: float
    error: float
    pseudo_N: np.ndarray


def check_features(*sets_ND: np.ndarray) -> list[np.ndarray]:
    """Return feature sets as float64; raise UserError unless they can be compared.

    Each needs two pictures or more and finite numbers, and all the same number of features.
    """
    made = [np.asarray(given, dtype=np.float64) for given in sets_ND]
    for features in made:
        if features.ndim != 2 or len(features) < 2:
            raise UserError(
                f"features of shape {list(features.shape)}: a distance needs two pictures or more"
            )
        if not np.isfinite(features).all():
            raise UserError("features that are not finite numbers have no distance")
    sizes = {features.shape[1] for features in made}
    if len(sizes) > 1:
        raise UserError(f"feature sets of {sorted(sizes)} features cannot be compared")
    return made


def measure_moments(x_ND: np.ndarray) -> Moments:
    """Return the mean and the covariance of a feature set."""
    (x_ND,) = check_features(x_ND)
    mean_D = x_ND.mean(0)
    centred_ND = x_ND - mean_D
    return Moments(mean_D, centred_ND.T @ centred_ND / (len(x_ND) - 1))


# ------------------------------------------------------------------ Fréchet distance


def frechet(x_ND: np.ndarray, y_MD: np.ndarray) -> Frechet:
    """Return the Fréchet distance of two feature sets.

    The trace of the root of the covariances' product is the sum of the singular values of R_x R_y',
    where R are the triangular factors of the centred sets: no product is formed, so that also sets
    of fewer pictures than features keep their digits.
    """
    x_ND, y_MD = check_features(x_ND, y_MD)
    factor_x = _triangular_factor(x_ND)
    factor_y = _triangular_factor(y_MD)
    shared = np.linalg.svd(factor_x @ factor_y.T, compute_uv=False).sum()
    spread = np.square(factor_x).sum() + np.square(factor_y).sum()
    mean_term = np.square(x_ND.mean(0) - y_MD.mean(0)).sum()
    return Frechet(float(mean_term), float(max(0.0, spread - 2 * shared)))


def frechet_of_moments(one: Moments, other: Moments) -> Frechet:
    """Return the Fréchet distance of two normal distributions."""
    root = _root(one.covariance)
    eigenvalues = np.linalg.eigvalsh(root @ other.covariance @ root)
    shared = np.sqrt(eigenvalues.clip(0)).sum()
    spread = np.trace(one.covariance) + np.trace(other.covariance)
    mean_term = np.square(one.mean - other.mean).sum()
    return Frechet(float(mean_term), float(max(0.0, spread - 2 * shared)))


def estimate_frechet(x_ND: np.ndarray, reference: Moments) -> Estimate:
    """Return the Fréchet distance to a fixed reference, with the influence of each picture.

    The influence of picture i is 2 (mu - mu_r) . c_i + c_i' (I - T) c_i, centred, where c_i is its
    distance from the mean and T the optimal map from the set's normal distribution to that of the
    reference. Raises UserError unless there are more pictures than features: else T is not defined.
    """
    (x_ND,) = check_features(x_ND)
    count, dim = x_ND.shape
    if count <= dim:
        raise UserError(f"{count} pictures of {dim} features: their influence needs more pictures")
    own = measure_moments(x_ND)
    value = frechet_of_moments(reference, own).value

    root = _root(reference.covariance)
    middle = _root(root @ own.covariance @ root, power=-0.5)
    moved = np.eye(dim) - root @ middle @ root
    centred_ND = x_ND - own.mean
    bent_N = np.einsum("nd,de,ne->n", centred_ND, moved, centred_ND)
    influence_N = 2 * centred_ND @ (own.mean - reference.mean) + bent_N
    influence_N -= influence_N.mean()
    error = float(influence_N.std(ddof=1) / count**0.5)
    return Estimate(value, error, value + influence_N)


def frechet_of_equals(eigenvalue_D: Sequence[float] | np.ndarray, n: int, m: int) -> float:
    """Return the mean distance of two samples of one normal distribution, to second order.

    The distance of equals is not 0: it falls with the numbers of pictures, so that distances of
    different numbers are never compared.
    """
    values_D = np.asarray(eigenvalue_D, dtype=np.float64)
    values_D = values_D[values_D > 0]
    sums_DD = values_D[:, None] + values_D
    pairs = (values_D[:, None] * values_D / sums_DD).sum()
    return float((1 / n + 1 / m) * (values_D.sum() + 0.5 * (pairs + 0.5 * values_D.sum())))


def _triangular_factor(x_ND: np.ndarray) -> np.ndarray:
    """Return R with R'R = the covariance of a set."""
    centred_ND = (x_ND - x_ND.mean(0)) / (len(x_ND) - 1) ** 0.5
    return np.asarray(np.linalg.qr(centred_ND, mode="r"))


def _root(matrix_DD: np.ndarray, *, power: float = 0.5) -> np.ndarray:
    """Return the root of a symmetric matrix without negative eigenvalues, or another power."""
    values_D, vectors_DD = np.linalg.eigh((matrix_DD + matrix_DD.T) / 2)
    least = values_D.max(initial=0.0) * len(values_D) * np.finfo(np.float64).eps
    is_positive = values_D > least
    powers_D = np.zeros_like(values_D)
    powers_D[is_positive] = values_D[is_positive] ** power
    return (vectors_DD * powers_D) @ vectors_DD.T


# ------------------------------------------------------------------ kernel distance


def kernel(x_ND: np.ndarray, y_MD: np.ndarray) -> np.ndarray:
    """Return the cubic kernel (a . b / D + 1)^3 of all pairs, [N, M]."""
    return (x_ND @ y_MD.T / x_ND.shape[1] + 1) ** 3


def kernel_distance(x_ND: np.ndarray, y_MD: np.ndarray) -> float:
    """Return the unbiased squared kernel distance of two sets (KID); it may be below 0."""
    x_ND, y_MD = check_features(x_ND, y_MD)
    return _mean_of_pairs(x_ND) + _mean_of_pairs(y_MD) - 2 * float(kernel(x_ND, y_MD).mean())


def paired_kernel_distance(x_ND: np.ndarray, y_ND: np.ndarray) -> float:
    """Return the kernel distance of sets whose rows belong together: pictures of one prompt.

    Pairs of one prompt are left out of the cross term: they are not independent.
    """
    matrix_NN = _pair_matrix(x_ND, y_ND)
    count = len(matrix_NN)
    return float(matrix_NN.sum() / (count * (count - 1)))


def kernel_distance_of_subsets(
    x_ND: np.ndarray, y_MD: np.ndarray, subsets: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> tuple[float, float]:
    """Return the mean and the population deviation over subsets, as libraries print KID.

    The deviation is no standard error: the subsets overlap.
    """
    values = [kernel_distance(x_ND[list(rows)], y_MD[list(others)]) for rows, others in subsets]
    return float(np.mean(values)), float(np.std(values))


def estimate_kernel_distance(
    x_ND: np.ndarray,
    reference_MD: np.ndarray,
    *,
    group_N: np.ndarray | None = None,
    group_M: np.ndarray | None = None,
) -> Estimate:
    """Return the kernel distance to a fixed reference, with its jackknife.

    Pseudo-value i is N times the distance less N - 1 times that without picture i; all come from
    the sums of the kernel's rows. Pairs of one group, such as pictures of one prompt, are left out:
    they are alike whatever the sets are, and would draw the distance below 0 by as much as
    1 / N of that. Without groups every picture is its own, as in libraries. Raises UserError if
    fewer than three groups would be left.
    """
    x_ND, reference_MD = check_features(x_ND, reference_MD)
    count = len(x_ND)
    own_group_N = np.arange(count) if group_N is None else np.asarray(group_N)
    if len(np.unique(own_group_N)) < 3:
        raise UserError(f"{count} pictures: to leave one out needs three or more, of three prompts")
    is_pair_NN = own_group_N[:, None] != own_group_N
    is_pair_NM = np.ones((count, len(reference_MD)), dtype=bool)
    if group_N is not None and group_M is not None:
        is_pair_NM = own_group_N[:, None] != np.asarray(group_M)

    # 1. Sums over the pairs of each picture, and how many these are.
    own_N = (kernel(x_ND, x_ND) * is_pair_NN).sum(1)
    own_pairs_N = is_pair_NN.sum(1)
    cross_N = (kernel(x_ND, reference_MD) * is_pair_NM).sum(1)
    cross_pairs_N = is_pair_NM.sum(1)
    within = _mean_of_pairs(reference_MD)

    # 2. The distance of all, and those without each picture.
    own, own_pairs = own_N.sum(), own_pairs_N.sum()
    cross, cross_pairs = cross_N.sum(), cross_pairs_N.sum()
    value = own / own_pairs + within - 2 * cross / cross_pairs
    without_N = (
        (own - 2 * own_N) / (own_pairs - 2 * own_pairs_N)
        + within
        - 2 * (cross - cross_N) / (cross_pairs - cross_pairs_N)
    )
    pseudo_N = count * value - (count - 1) * without_N
    return Estimate(float(value), jackknife_error(pseudo_N), pseudo_N)


def jackknife_error(pseudo_N: np.ndarray) -> float:
    """Return the standard error of the mean of pseudo-values."""
    return float(pseudo_N.std(ddof=1) / len(pseudo_N) ** 0.5)


def _mean_of_pairs(x_ND: np.ndarray) -> float:
    """Return the mean of the kernel over pairs of different pictures."""
    values_NN = kernel(x_ND, x_ND)
    count = len(x_ND)
    return float((values_NN.sum() - np.trace(values_NN)) / (count * (count - 1)))


def _pair_matrix(x_ND: np.ndarray, y_ND: np.ndarray) -> np.ndarray:
    """Return h [N, N], whose sum is N (N - 1) times the paired kernel distance.

    h_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j), and 0 for i = j.
    """
    x_ND, y_ND = check_features(x_ND, y_ND)
    if len(x_ND) != len(y_ND):
        raise UserError(f"{len(x_ND)} and {len(y_ND)} pictures are no pairs")
    cross_NN = kernel(x_ND, y_ND)
    matrix_NN = kernel(x_ND, x_ND) + kernel(y_ND, y_ND) - cross_NN - cross_NN.T
    np.fill_diagonal(matrix_NN, 0)
    return matrix_NN


# ------------------------------------------------------------------ are two samplers the same?

TIE = 1e-9
"""Relative to a statistic, at least 1: exchanges this near to it count as equal."""
ENUMERATED = 12
"""Up to so many prompts all exchanges are tried."""


@dataclass(frozen=True, slots=True)
class SwapTest:
    """The distance of two samplers on the same prompts, and how often chance gives as much.

    `null_mean` and `null_deviation` are those of the statistic under exchanges.
    """

    statistic: float
    p: float
    null_mean: float
    null_deviation: float


def swap_test(
    x_ND: np.ndarray,
    y_ND: np.ndarray,
    *,
    group_N: Sequence[int] | np.ndarray | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> SwapTest:
    """Test whether two samplers have one distribution a prompt, by the kernel distance.

    Under that hypothesis the pictures of a prompt may be exchanged between the samplers. Row i of
    both belongs to one prompt; rows of one `group_N` are exchanged together (several pictures of a
    prompt). An exchange turns the sign of a row and column of the pair matrix, so that all are one
    product. Needs independent seeds: pictures drawn from common noise are not exchangeable. All
    exchanges are tried up to `ENUMERATED` groups, else `draws` random ones, beside the observed.
    """
    matrix_NN = _pair_matrix(x_ND, y_ND)
    count = len(matrix_NN)
    matrix_GG = _sum_groups(matrix_NN, group_N)
    signs_SG = _exchanges(len(matrix_GG), draws, seed)
    scale = count * (count - 1)
    values_S = np.einsum("sg,sg->s", signs_SG @ matrix_GG, signs_SG) / scale
    return _summarise(float(matrix_GG.sum() / scale), values_S, len(matrix_GG) <= ENUMERATED)


def frechet_swap_test(
    x_ND: np.ndarray,
    y_ND: np.ndarray,
    *,
    group_N: Sequence[int] | np.ndarray | None = None,
    draws: int = 200,
    seed: int = 0,
) -> SwapTest:
    """Test as `swap_test` does, by the Fréchet distance: each exchange costs a decomposition."""
    x_ND, y_ND = check_features(x_ND, y_ND)
    if len(x_ND) != len(y_ND):
        raise UserError(f"{len(x_ND)} and {len(y_ND)} pictures are no pairs")
    index_N = _number_groups(group_N, len(x_ND))
    groups = int(index_N.max()) + 1
    signs_SG = _exchanges(groups, draws, seed)
    values_S = np.empty(len(signs_SG))
    for s, signs_G in enumerate(signs_SG):
        stays_N1 = (signs_G[index_N] > 0)[:, None]
        one_ND = np.where(stays_N1, x_ND, y_ND)
        other_ND = np.where(stays_N1, y_ND, x_ND)
        values_S[s] = frechet(one_ND, other_ND).value
    return _summarise(frechet(x_ND, y_ND).value, values_S, groups <= ENUMERATED)


def _number_groups(group_N: Sequence[int] | np.ndarray | None, count: int) -> np.ndarray:
    """Return the number of each row's group, from 0; every row is its own without groups."""
    if group_N is None:
        return np.arange(count)
    if len(group_N) != count:
        raise UserError(f"{len(group_N)} groups for {count} pairs of pictures")
    return np.unique(np.asarray(group_N), return_inverse=True)[1]


def _sum_groups(matrix_NN: np.ndarray, group_N: Sequence[int] | np.ndarray | None) -> np.ndarray:
    """Sum the rows and columns of each group."""
    if group_N is None:
        return matrix_NN
    index_N = _number_groups(group_N, len(matrix_NN))
    groups = int(index_N.max()) + 1
    rows_GN = np.zeros((groups, len(matrix_NN)))
    np.add.at(rows_GN, index_N, matrix_NN)
    sums_GG = np.zeros((groups, groups))
    np.add.at(sums_GG, index_N, rows_GN.T)
    return sums_GG


def _exchanges(groups: int, draws: int, seed: int) -> np.ndarray:
    """Return signs [S, G] of exchanges: all 2^G for few groups, else random ones."""
    if groups <= ENUMERATED:
        return np.array(list(product((1.0, -1.0), repeat=groups)))
    return np.random.default_rng(seed).choice((1.0, -1.0), size=(draws, groups))


def _summarise(statistic: float, values_S: np.ndarray, is_whole: bool) -> SwapTest:
    """Compare a statistic with those of exchanges; random ones do not hold the observed itself."""
    as_large = int((values_S >= statistic - TIE * max(1.0, abs(statistic))).sum())
    extra = 0 if is_whole else 1
    p = (as_large + extra) / (len(values_S) + extra)
    return SwapTest(statistic, p, float(values_S.mean()), float(values_S.std()))


# ------------------------------------------------------------------ precision and recall

NEIGHBOURS = 3
"""Neighbours whose distance is the radius of a picture's ball."""


def precision_recall(
    reference_MD: np.ndarray, generated_ND: np.ndarray, k: int = NEIGHBOURS
) -> tuple[float, float]:
    """Return improved precision and recall (Kynkäänniemi et al., 2019, arXiv 1904.06991).

    Precision is the share of generated pictures strictly nearer to some reference picture than
    that one's k-th neighbour; recall is the same with the sets exchanged.
    """
    reference_MD, generated_ND = check_features(reference_MD, generated_ND)
    fewest = min(len(reference_MD), len(generated_ND))
    if not 1 <= k < fewest:
        raise UserError(f"k={k}: sets of {fewest} pictures have up to {fewest - 1} neighbours")
    across_MN = _distances(reference_MD, generated_ND)
    radius_M = np.sort(_distances(reference_MD, reference_MD), 1)[:, k]
    radius_N = np.sort(_distances(generated_ND, generated_ND), 1)[:, k]
    precision = (across_MN < radius_M[:, None]).any(0).mean()
    recall = (across_MN < radius_N).any(1).mean()
    return float(precision), float(recall)


def estimate_precision_recall(
    reference_MD: np.ndarray, generated_ND: np.ndarray, k: int = NEIGHBOURS
) -> tuple[Estimate, Estimate]:
    """Return precision and recall to a fixed reference, with the influence of each picture.

    Precision is a mean over generated pictures. Recall is not: the influence of picture i is what
    leaving it out takes away, N - 1 times; the deviation of such values is rather too large than
    too small (Efron and Stein, 1981). Raises UserError unless k + 2 pictures are generated.
    """
    reference_MD, generated_ND = check_features(reference_MD, generated_ND)
    count = len(generated_ND)
    if not (1 <= k < len(reference_MD) and k + 1 < count):
        raise UserError(
            f"precision and recall of {k} neighbours: {count} pictures and "
            f"{len(reference_MD)} of the reference are too few"
        )
    across_MN = _distances(reference_MD, generated_ND)
    radius_M = np.sort(_distances(reference_MD, reference_MD), 1)[:, k]
    is_near_N = np.asarray((across_MN < radius_M[:, None]).any(0), dtype=np.float64)
    recall, change_N = _leave_out_of_recall(across_MN, generated_ND, k)
    of_recall_N = recall - (count - 1) * (change_N - change_N.mean())
    return (
        Estimate(float(is_near_N.mean()), jackknife_error(is_near_N), is_near_N),
        Estimate(recall, jackknife_error(of_recall_N), of_recall_N),
    )


def _leave_out_of_recall(
    across_MN: np.ndarray, generated_ND: np.ndarray, k: int
) -> tuple[float, np.ndarray]:
    """Return recall, and what leaving each generated picture out adds to it, [N].

    `across_MN` are the distances of reference and generated pictures. Without a picture its ball is
    gone, and the balls of those that it is a neighbour of grow to the next one.
    """
    from scipy.sparse import csr_array

    # 1. Each picture's neighbours, its radius, and the radius without one of the neighbours.
    apart_NN = _distances(generated_ND, generated_ND)
    np.fill_diagonal(apart_NN, np.inf)
    order_NK = np.argpartition(apart_NN, [k - 1, k], axis=1)[:, : k + 1]
    nearest_NK = np.take_along_axis(apart_NN, order_NK, 1)
    radius_N = nearest_NK[:, k - 1]
    next_N = nearest_NK[:, k]

    # 2. Which balls hold each reference picture: only those in one ball or none can change.
    is_held_MN = across_MN < radius_N
    balls_M = is_held_MN.sum(1)
    may_change_M = balls_M <= 1
    is_only_held_MN = is_held_MN[may_change_M] & (balls_M[may_change_M] == 1)[:, None]

    # 3. Which picture must go so that a ball beside it grows over such a reference picture.
    is_beside_MN = (across_MN < next_N)[may_change_M] & ~is_held_MN[may_change_M]
    count = len(generated_ND)
    ball_Nk = np.arange(count).repeat(k)
    neighbour_Nk = order_NK[:, :k].ravel()
    is_neighbour_NN = csr_array((np.ones(count * k), (ball_Nk, neighbour_Nk)), shape=(count, count))
    is_reached_MN = (csr_array(is_beside_MN.astype(float)) @ is_neighbour_NN).toarray() > 0

    is_lost_MN = is_only_held_MN & ~is_reached_MN
    is_won_MN = (balls_M[may_change_M] == 0)[:, None] & is_reached_MN
    change_N = (is_won_MN.sum(0) - is_lost_MN.sum(0).astype(float)) / len(across_MN)
    return float((balls_M > 0).mean()), change_N


def _distances(x_ND: np.ndarray, y_MD: np.ndarray) -> np.ndarray:
    """Return Euclidean distances of all pairs, [N, M]; one of a row to itself is 0."""
    from scipy.spatial.distance import cdist

    return cdist(x_ND, y_MD)
