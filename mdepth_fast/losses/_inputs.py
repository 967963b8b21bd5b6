"""What a loss can tell of wrong inputs by their values, which it looks at once."""

import warnings

from torch import Tensor, nn

from mdepth_fast.ops import _checks

__all__ = ["look_once"]

_SMALL, _LARGE = 10, 64  # a focal length in pixels, and the width of an image for which it cannot be one


def look_once(loss: nn.Module, K: Tensor | None = None, **images: Tensor) -> None:
    """Warns of images beyond [0, 1] and of a camera matrix that is not in their pixels, at the first call of a loss.

    Only where looking waits for no GPU and nothing traces.
    """
    if loss.__dict__.get("_looked") or not all(_checks.readable(image) for image in images.values()):
        return
    loss.__dict__["_looked"] = True  # no parameter or buffer
    for name, image in images.items():
        if image.numel() and (high := float(image.detach().amax())) > 1.5:
            warnings.warn(
                f"{name}: expected images in [0, 1], got values up to {high:.4g}; divide by 255", stacklevel=3
            )
    if K is None or not K.numel() or not _checks.readable(K):
        return
    height, width = next(iter(images.values())).shape[-2:]
    fx, fy, cx, cy = (
        float(K.detach().flatten(0, -3)[0, row, column]) for row, column in ((0, 0), (1, 1), (0, 2), (1, 2))
    )
    got = f"fx {fx:.4g}, fy {fy:.4g}, cx {cx:.4g}, cy {cy:.4g}"
    if max(fx, fy) < _SMALL and width >= _LARGE:
        warnings.warn(f"K: expected pixels of {width}x{height} (width x height), got fractions: {got}", stacklevel=3)
    elif not (0 <= cx < width and 0 <= cy < height) and width >= _LARGE:
        warnings.warn(
            f"K: expected pixels of {width}x{height} (width x height), got those of another size: {got}, a principal "
            "point outside of the image",
            stacklevel=3,
        )
