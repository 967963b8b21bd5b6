"""The embedded sample: one real rectified stereo pair with dense ground truth, inside the scikit-image wheel."""

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mdepth_fast.data.samples import Sample, SourceName, check_size, make_sample

__all__ = ["MotorcycleStereo"]

# Calibration of the quarter-size pair, from the docstring of skimage.data.stereo_motorcycle.
_FOCAL, _CX_LEFT, _CY = 994.978, 311.193, 254.877
_CX_OFFSET = 31.086  # cx of the right camera minus cx of the left one, pixels
_BASELINE = 0.193001  # metres


class MotorcycleStereo(Dataset[Sample]):
    """Middlebury 2014 "Motorcycle", 500x741, `length` times the same pair (Scharstein et al., GCPR 2014).

    The left view is the target and the right one its source, pose known in metres ("stereo"); with "right" in `sides`
    the views also serve the other way round, sample i taking `sides[i % len(sides)]`. Ground truth (`evaluation=True`)
    exists for the left view: depth = baseline * focal / (disparity + 31.086 px), 0 where the disparity is unknown.
    Needs scikit-image, no network.
    """

    sources: tuple[SourceName, ...] = ("stereo",)

    def __init__(
        self,
        height: int = 192,
        width: int = 288,
        length: int = 1,
        *,
        sides: tuple[str, ...] = ("left",),
        evaluation: bool = False,
    ) -> None:
        size = check_size(height, width)
        if length < 1:
            raise ValueError(f"length: expected at least 1, got {length}")
        if not sides or not set(sides) <= {"left", "right"}:
            raise ValueError(f'sides: expected some of "left", "right", got {sides!r}')
        if evaluation and tuple(sides) != ("left",):
            raise ValueError(f'sides: evaluation has ground truth for ("left",) only, got {sides!r}')
        try:
            from skimage.data import stereo_motorcycle
        except ImportError as error:
            raise ImportError("MotorcycleStereo needs scikit-image: pip install 'mdepth-fast[train]'") from error
        left, right, disparity = stereo_motorcycle()
        depth = np.where(np.isfinite(disparity), _BASELINE * _FOCAL / (disparity + _CX_OFFSET), 0).astype(np.float32)
        left_K, right_K = (
            np.array([[_FOCAL, 0, cx], [0, _FOCAL, _CY], [0, 0, 1]]) for cx in (_CX_LEFT, _CX_LEFT + _CX_OFFSET)
        )
        # The right camera stands at +baseline on the left one's x axis: its points lie at x - baseline.
        to_right: NDArray[np.float64] = np.eye(4)
        to_right[0, 3] = -_BASELINE
        self._length = length
        self._samples: list[Sample] = []
        for side in sides:
            if side == "left":
                views, matrices, T = (left, right), (left_K, right_K), to_right
            else:
                views, matrices, T = (right, left), (right_K, left_K), np.array(np.linalg.inv(to_right))
            self._samples.append(
                make_sample(
                    f"motorcycle {side}",
                    views[0],
                    [views[1]],
                    matrices[0],
                    [matrices[1]],
                    [T],
                    size,
                    depth=depth if evaluation else None,
                )
            )

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._length:
            raise IndexError(f"index: expected 0..{self._length - 1}, got {index}")
        return self._samples[index % len(self._samples)].copy()
