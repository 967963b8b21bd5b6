"""Camera matrices that can belong to an image, and those that cannot."""

import numpy as np
import pytest

from mdepth_fast.data.intrinsics import implausible_intrinsics


def matrix(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


@pytest.mark.parametrize(
    ("K", "size"),
    [
        (matrix(721.5377, 721.5377, 609.5593, 172.854), (375, 1242)),  # KITTI
        (matrix(518.8579, 519.4696, 325.5824, 253.7362), (480, 640)),  # NYU Depth V2
        (matrix(495.57, 495.48, 269.5, 169.19), (360, 540)),
        (matrix(1400, 1400, 540, 960), (1920, 1080)),  # an upright phone
    ],
)
def test_real_cameras_are_plausible(K: np.ndarray, size: tuple[int, int]) -> None:
    assert implausible_intrinsics(K, *size, as_taken=True) is None


@pytest.mark.parametrize(
    ("K", "message"),
    [
        (matrix(np.nan, 500, 320, 240), "expected finite numbers"),
        (matrix(0.9, 1.2, 0.5, 0.5), "look like fractions of the image: expected pixels of 640x480"),
        (matrix(1000, 1000, 640, 480), "the principal point is far from the centre"),  # of 1280x960
        (matrix(500, 500, 0, 0), "the principal point is far from the centre"),
        (matrix(100, 100, 320, 240), "the focal length is 0.16 widths of 640x480"),
        (matrix(500, 600, 320, 240), "fx / fy is 0.833, expected about 1"),
    ],
)
def test_faults_name_the_reason(K: np.ndarray, message: str) -> None:
    assert message in (implausible_intrinsics(K, 480, 640, as_taken=True) or "")


def test_a_network_may_see_stretched_images() -> None:
    assert implausible_intrinsics(matrix(371.8, 369.4, 319.5, 95.5), 192, 640) is None
    assert implausible_intrinsics(matrix(587, 264, 319.0, 89.7), 192, 640) is None  # 540x360 stretched to 640x192
    assert "9.00 times as wide as high" in (implausible_intrinsics(matrix(400, 1080, 319.5, 95.5), 192, 640) or "")
