"""What goes wrong in self-supervised training without an error, seen in the numbers of a step and reported once."""

import math
import warnings
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mdepth_fast.data.intrinsics import implausible_intrinsics
from mdepth_fast.systems.views import Views

__all__ = ["Doctor"]

_FLAT = 1e-3  # spread of a flat disparity map over an image, as a share of its mean
_MASKED, _UNMASKED = 0.95, 0.005  # shares of pixels
_STILL = 1e-5  # predicted translation per depth: an untrained network gives more
# Parallax of known poses at the middle of the depth range: least in pixels, largest in image widths.
_LEAST_PARALLAX, _LARGEST_PARALLAX = 0.25, 1.0
_FEW, _MANY = 5, 10  # looks in a row


class Doctor:
    """Looks at training steps and warns, once for each cause, of what keeps a run from learning.

    Its thresholds are the project's own and wide: published recipes stay far inside.

    Args:
        config: of the system; `config.model` may have `min_depth` and `max_depth`, `config.loss` may have `auto_mask`.
    """

    def __init__(self, config: Any) -> None:
        near, far = (getattr(config.model, name, None) for name in ("min_depth", "max_depth"))
        self.middle_depth = math.sqrt(near * far) if near and far else None
        self.auto_mask = getattr(getattr(config, "loss", None), "auto_mask", True)
        self._looked = False
        self._reported: set[str] = set()
        self._seen: dict[str, deque[bool]] = defaultdict(lambda: deque(maxlen=_MANY))

    def look(self, step: int, views: Views, outputs: Any, terms: Mapping[str, Tensor]) -> None:
        """Reads the numbers of a step, which waits for the device.

        outputs: `Outputs` of the system; terms: the named terms of its objective, of which "auto_masked", the share of
        pixels that auto-masking removes, is read.
        """
        with torch.no_grad():
            if not self._looked:
                self._intrinsics(views)
                self._looked = True
            self._known_motion(views)
            self._predicted_motion(views, outputs.transforms)
            if step > 0:
                self._shape(step, outputs.disparities[0])
            if "auto_masked" in terms:
                self._masks(views, float(terms["auto_masked"]))

    def _warn(self, cause: str, text: str) -> None:
        if cause not in self._reported:
            self._reported.add(cause)
            warnings.warn(text, stacklevel=2)

    def _lasts(self, cause: str, seen: bool, looks: int) -> bool:
        """Whether something has been seen at each of the last looks."""
        self._seen[cause].append(seen)
        last = list(self._seen[cause])[-looks:]
        return len(last) == looks and all(last)

    def _shape(self, step: int, disparity: Tensor) -> None:
        disparity = disparity.float()
        spread = float((disparity.std((1, 2, 3)) / disparity.mean((1, 2, 3))).max())
        if spread < _FLAT:
            self._warn(
                "flat",
                f"the disparity is flat at step {step} (spread {spread:.1e} of its mean): training has collapsed; "
                "check the intrinsics, the depth range and that the camera moves",
            )

    def _masks(self, views: Views, share: float) -> None:
        if not self.auto_mask or not any(_moves(source) for source in views.offsets):
            return
        if self._lasts("masked", share > _MASKED, _FEW):
            self._warn(
                "masked",
                f"auto-masking removes {share:.1%} of the pixels: the camera hardly moves between a frame and its "
                f"sources {list(views.offsets)}; leave out static frames, or set --data.sources further apart "
                "(`mdepth-fast data check FOLDER` suggests an offset), and check that the frames are in temporal order",
            )
        if self._lasts("unmasked", share < _UNMASKED, _MANY):
            self._warn(
                "unmasked",
                f"auto-masking removes {share:.1%} of the pixels, where some are expected: frames and sources "
                f"{list(views.offsets)} have too little in common; check that the frames are in temporal order, of one "
                "clip, and set --data.sources closer together",
            )

    def _known_motion(self, views: Views) -> None:
        known = [index for index, source in enumerate(views.offsets) if not _moves(source)]
        if self.middle_depth is None or not known:
            return
        shift, parallax = self._parallax(views, views.T[:, known])
        width = views.target.shape[-1]
        said = (
            f"the known poses move the camera by {shift:.3g} (median), which is {parallax:.3g} pixels of parallax at "
            f"the middle of the depth range, {self.middle_depth:.3g}, in images {width} pixels wide"
        )
        remedy = "poses and depth need one unit; or change --model.min_depth and --model.max_depth"
        if parallax > _LARGEST_PARALLAX * width:
            self._warn("known motion", f"{said}: too far. Are the poses in millimetres? {remedy.capitalize()}")
        elif self._lasts("known motion", parallax < _LEAST_PARALLAX, _FEW):
            self._warn(
                "known motion",
                f"{said}: too little. Are the poses in kilometres, or does the camera stand still? "
                f"{remedy.capitalize()}, or take --data.sources further apart",
            )

    def _predicted_motion(self, views: Views, transforms: Tensor | list[Tensor]) -> None:
        moved = [index for index, source in enumerate(views.offsets) if _moves(source)]
        if self.middle_depth is None or not moved:
            return
        T = transforms if isinstance(transforms, Tensor) else transforms[0]
        shift, parallax = self._parallax(views, T[:, moved])
        width = views.target.shape[-1]
        out = parallax > _LARGEST_PARALLAX * width or shift < _STILL * self.middle_depth
        if self._lasts("predicted motion", out, _MANY):
            self._warn(
                "predicted motion",
                f"the predicted motion is {shift:.3g} (median), which is {parallax:.3g} pixels of parallax at "
                f"the middle of the depth range, {self.middle_depth:.3g}, in images {width} pixels wide: out of "
                "proportion; check the intrinsics, that the frames are in temporal order and that the camera moves",
            )

    def _parallax(self, views: Views, T: Tensor) -> tuple[float, float]:
        """The median length of the translations of T (B,S,4,4), and the pixels that they move the middle depth by."""
        shift = float(T[..., :3, 3].float().norm(dim=-1).median())
        return shift, float(views.K[:, 0, 0].double().mean()) * shift / (self.middle_depth or 1)

    def _intrinsics(self, views: Views) -> None:
        height, width = views.target.shape[-2:]
        fault = implausible_intrinsics(views.K.double().mean(0).cpu().numpy(), height, width)
        if fault:
            self._warn("intrinsics", f"{fault} (at the network's size {height}x{width})")


def _moves(source: int | str) -> bool:
    """Whether the motion to a source is predicted."""
    return isinstance(source, int)
