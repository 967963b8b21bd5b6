"""What the values of a predicted map mean, and their unit."""

from typing import Literal, get_args

__all__ = ["KINDS", "UNITS", "Kind", "check_kind", "describe", "is_inverse"]

Kind = Literal["metric", "relative", "affine_inverse", "disparity"]
"""
"metric": depth in metres; "relative": depth up to one factor per image; "affine_inverse": inverse depth up to a scale
and a shift per image, larger is closer; "disparity": x in the left image minus x in the right one of a rectified pair,
in pixels, larger is closer.
"""

KINDS: tuple[Kind, ...] = get_args(Kind)
UNITS: dict[Kind, str | None] = {"metric": "m", "relative": None, "affine_inverse": None, "disparity": "px"}

_WORDS: dict[Kind, str] = {
    "metric": "depth in m",
    "relative": "depth up to one factor",
    "affine_inverse": "inverse depth up to scale and shift",
    "disparity": "disparity in px",
}


def check_kind(kind: Kind, unit: str | None) -> None:
    """ValueError unless `kind` is one of `KINDS` and `unit` the one that belongs to it."""
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if unit != UNITS[kind]:
        raise ValueError(f"unit: expected {UNITS[kind]!r} for kind {kind!r}, got {unit!r}")


def is_inverse(kind: Kind) -> bool:
    """Whether larger is closer. Values of such a map are not to be inverted again, and 0 is far away, not missing."""
    return kind in ("affine_inverse", "disparity")


def describe(kind: Kind) -> str:
    """What the values are, in a few words: "depth in m"."""
    return _WORDS[kind]
