"""ScalingAR's hyper-parameters: by default the one setting that the paper uses for all its models.

They are those of arXiv 2509.26376v3, App. C.2. The paper leaves some constants open: those marked
"open" hold what this project decided. Windows count steps, that is image tokens of one candidate;
gains and scales have no unit. Comments give the paper's symbols.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from harness import Count, Natural, NotNegative, Positive, Share, UserError


@dataclass(frozen=True, slots=True)
class Channel:
    """What the confidence is made of; each switch is an ablation of Tab. 2.

    Without `token` or `block` the other one has all the weight of the intrinsic score. Without
    `cond` the intrinsic score has all the weight of the confidence, and the scheduler loses its
    drift term. Raises UserError if both `token` and `block` are off.
    """

    token: bool = True  # how decisive the next token's distribution is
    block: bool = True  # whether a region of the grid is in trouble
    cond: bool = True  # how much the prompt moves the distribution

    def __post_init__(self) -> None:
        _expect(
            self.token or self.block,
            "channel.token and channel.block are off",
            "leave one of them on",
        )


@dataclass(frozen=True, slots=True)
class Policy:
    """What the confidence is used for; each switch is an ablation of Tab. 4."""

    termination: bool = True
    scheduler: bool = True


@dataclass(frozen=True, slots=True)
class ProfileSettings:
    """Constants of the confidence profile (Sec. 4.1). Raises UserError for values out of range."""

    entropy_weight: NotNegative = 0.5  # alpha_H
    margin_weight: NotNegative = 0.5  # alpha_M
    token_smoothing: Share = 0.2  # lambda_tok, weight of the new value
    token_weight: NotNegative = 0.65  # w_tok
    block_weight: NotNegative = 0.35  # w_blk
    block_side: Count = 4  # b, tokens
    worst_share: Share = 0.1  # q, of the blocks begun
    intrinsic_smoothing: Share = 0.2  # lambda_I, weight of the new value
    intrinsic_weight: NotNegative = 0.75  # w_I
    cond_weight: NotNegative = 0.25  # w_D
    rolling_steps: Count = 64  # W_roll, open
    low_percentile: NotNegative = 5.0  # open
    high_percentile: Positive = 95.0  # open
    epsilon: Positive = 1e-6  # open

    def __post_init__(self) -> None:
        for name in ("token_smoothing", "intrinsic_smoothing", "worst_share"):
            _expect_share("profile", name, getattr(self, name))
        for name in ("block_side", "rolling_steps"):
            _expect(
                getattr(self, name) >= 1,
                f"profile.{name}={getattr(self, name)}",
                "must be at least 1",
            )
        _expect(
            0 <= self.low_percentile < self.high_percentile <= 100,
            f"profile.low_percentile={self.low_percentile}, high_percentile={self.high_percentile}",
            "must rise within 0 to 100",
        )


@dataclass(frozen=True, slots=True)
class TerminationSettings:
    """Constants of the moving threshold below which a candidate is in danger (Eq. 9).

    Raises UserError for values out of range.
    """

    quantile: Share = 0.2  # p, of the live candidates' confidences
    smoothing: Share = 0.2  # lambda_theta, weight of the new value
    warmup_share: Share = 0.125  # W0, of the image's tokens
    min_alive: Count = 1  # candidates a prompt keeps at least, open

    def __post_init__(self) -> None:
        for name in ("quantile", "smoothing", "warmup_share"):
            _expect_share("termination", name, getattr(self, name))
        _expect(
            self.min_alive >= 1, f"termination.min_alive={self.min_alive}", "must be at least 1"
        )


@dataclass(frozen=True, slots=True)
class RecoverySettings:
    """How a candidate below the threshold may recover.

    The paper's text and its algorithm box disagree, so there are three modes. `alg1_immediate` ends
    the candidate at once unless it has rebounded (Alg. 1, line 17). `window_any` opens a window and
    ends it after that unless it rebounds somewhere inside (Sec. 4.2.1). `window_end` (open) judges
    it at the window's end, when it must be above the threshold and have rebounded.

    A rebound is measured from the lowest confidence `since_flag` (open; in `alg1_immediate` since
    the warm-up) or from the `running_min` of the whole image (Eq. 8). If recovery is not enabled, a
    candidate below the threshold ends at once. Raises UserError for values out of range.
    """

    enabled: bool = True
    mode: str = "window_end"
    reference: str = "since_flag"
    window_steps: Natural = 32  # Delta_rec
    rebound: NotNegative = 0.05  # delta_rec, relative to the lowest confidence

    def __post_init__(self) -> None:
        _expect_one_of("recovery.mode", self.mode, ("window_end", "window_any", "alg1_immediate"))
        _expect_one_of("recovery.reference", self.reference, ("since_flag", "running_min"))
        _expect(
            self.window_steps >= 0,
            f"recovery.window_steps={self.window_steps}",
            "must not be negative",
        )


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """Constants of the guidance scheduler (Eq. 10).

    Its correction is additive to the base scale, or relative to it (open). Raises UserError for
    values out of range.
    """

    form: str = "additive"
    drift: NotNegative = 0.3  # alpha, gain where the prompt loses influence
    volatility: NotNegative = 0.4  # beta, gain on the variance of the intrinsic score
    rebound: NotNegative = (
        0.4  # gamma (lambda in the paper's table), loss where confidence recovers
    )
    variance_steps: Count = 32  # W_var, open
    lowest_scale: NotNegative = 1.0  # open
    highest_factor: Positive = 2.0  # of the base scale, open

    def __post_init__(self) -> None:
        _expect_one_of("scheduler.form", self.form, ("additive", "relative"))
        _expect(
            self.variance_steps >= 1,
            f"scheduler.variance_steps={self.variance_steps}",
            "must be at least 1",
        )
        _expect(
            self.lowest_scale >= 0,
            f"scheduler.lowest_scale={self.lowest_scale}",
            "must not be negative",
        )
        _expect(
            self.highest_factor >= 1,
            f"scheduler.highest_factor={self.highest_factor}",
            "must be at least 1",
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that ScalingAR's arithmetic depends on."""

    channel: Channel = field(default_factory=Channel)
    policy: Policy = field(default_factory=Policy)
    profile: ProfileSettings = field(default_factory=ProfileSettings)
    termination: TerminationSettings = field(default_factory=TerminationSettings)
    recovery: RecoverySettings = field(default_factory=RecoverySettings)
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)


def _expect(fine: bool, value: str, remedy: str) -> None:
    if not fine:
        raise UserError(f"method.{value}: {remedy}")


def _expect_share(group: str, name: str, value: float) -> None:
    _expect(0 <= value <= 1, f"{group}.{name}={value}", "is a share, 0 to 1")


def _expect_one_of(name: str, value: str, names: tuple[str, ...]) -> None:
    _expect(value in names, f"{name}={value}", f"choose one of {', '.join(names)}")


PAPER = Settings()
"""The paper's own settings."""
