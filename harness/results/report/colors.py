"""Choose the colours of the page and of the figures: one for each method, shades for its budgets.

The page takes them from its data files, so that it and the figures agree.
"""

from __future__ import annotations

from typing import Literal

Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")

BACKGROUND: dict[Theme, str] = {"light": "#ffffff", "dark": "#1e2024"}
"""What figures stand on: `--card` of the page's style.css."""
PALETTE: dict[Theme, tuple[str, ...]] = {
    "light": (
        *("#6f6b64", "#6b1149", "#0000cc", "#8b7ffe", "#fe573b", "#514fca", "#3f9f97"),
        *("#9836fd", "#9e0ea2", "#a25e00", "#5b008c", "#3a5c38", "#c57870", "#789400"),
        *("#af0000", "#aa61ba", "#3f3568", "#007e8e", "#7d0000"),
    ),
    "dark": (
        *("#a8a39a", "#ac457f", "#5d90fe", "#ccccff", "#fb340d", "#6056fe", "#acf8f0"),
        *("#9080ae", "#ce00d2", "#fd9f35", "#d0a0ff", "#28fe32", "#ff786e", "#daf596"),
        *("#ac6e64", "#c965df", "#6e5ead", "#3cbbce", "#c23726"),
    ),
}
"""Grey for plain sampling, then a colour for each method; a method has one hue in both themes.

Found by a search for the largest smallest distance (OKLab) between any two of a theme, as normal,
protanopic, deuteranopic and tritanopic eyes see them (Machado et al., IEEE TVCG 15, 2009), with a
contrast of at least 3 to the background. The first ones are the most distinct.
"""
STAGES = (17, 9, 6, 4, 3, 13, 1, 12)
"""The methods' colours that stages of an image have, where bars are stacked."""
PALEST = 0.5
"""How far the shade of a method's smallest budget is mixed with the background, at most."""


def method_color(color: int, theme: Theme) -> str:
    """Return a method's colour as #rrggbb; more methods than colours share them in turn.

    `color` is 0 for plain sampling, and counts the other methods from 1.
    """
    palette = PALETTE[theme]
    if color < len(palette):
        return palette[color]
    return palette[1 + (color - 1) % (len(palette) - 1)]


def run_color(color: int, shade: float, theme: Theme) -> str:
    """Return a run's colour: its method's, the paler the smaller its budget.

    `shade` is 1 for the largest budget of the method, and 0 for the smallest of several.
    """
    return _mix(method_color(color, theme), BACKGROUND[theme], PALEST * (1 - shade))


def list_stage_colors(theme: Theme) -> list[str]:
    """Return the colours of the stages of an image, in their order."""
    return [PALETTE[theme][color] for color in STAGES]


def _mix(color: str, other: str, share: float) -> str:
    """Mix a share of another colour into one, both #rrggbb."""
    mixed = []
    for channel, channel_of_other in zip(_channels(color), _channels(other), strict=True):
        mixed.append(round(channel + share * (channel_of_other - channel)))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _channels(color: str) -> list[int]:
    return [int(color[first : first + 2], 16) for first in (1, 3, 5)]
