"""View synthesis in float64 NumPy loops: the oracle of the losses of vid2depth and SfMLearner."""

import math
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

Array = np.ndarray[Any, Any]


def matrix(vector: Array) -> Array:
    """Translation, and Rx Ry Rz."""
    T = np.eye(4)
    T[:3, :3] = Rotation.from_euler("XYZ", vector[3:]).as_matrix()
    T[:3, 3] = vector[:3]
    return T


def area(image: Array, factor: int) -> Array:
    height, width = image.shape[-2:]
    return image.reshape(*image.shape[:-2], height // factor, factor, width // factor, factor).mean((-3, -1))


def warp(source: Array, depth: Array, K: Array, T: Array, source_K: Array) -> tuple[Array, Array]:
    """Source (3,h,w) at the projections of the target's pixels, and 1 where all four neighbours lie inside."""
    height, width = depth.shape
    warped, mask = np.zeros_like(source), np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            point = T[:3, :3] @ (np.linalg.inv(K) @ [x, y, 1] * depth[y, x]) + T[:3, 3]
            u, v, z = source_K @ point
            u, v = u / z, v / z
            left, top = math.floor(u), math.floor(v)
            mask[y, x] = left >= 0 and top >= 0 and left + 1 <= width - 1 and top + 1 <= height - 1
            u, v = min(max(u, 0), width - 1), min(max(v, 0), height - 1)
            left, top = min(math.floor(u), width - 2), min(math.floor(v), height - 2)
            a, b = u - left, v - top
            warped[:, y, x] = (1 - b) * ((1 - a) * source[:, top, left] + a * source[:, top, left + 1]) + b * (
                (1 - a) * source[:, top + 1, left] + a * source[:, top + 1, left + 1]
            )
    return warped, mask


def box(image: Array) -> Array:
    """Means over the 3x3 windows that lie in the image."""
    height, width = image.shape[-2:]
    return sum(image[..., y : height - 2 + y, x : width - 2 + x] for y in range(3) for x in range(3)) / 9


def dissimilarity(x: Array, y: Array) -> Array:
    mx, my = box(x), box(y)
    vx, vy, vxy = box(x * x) - mx * mx, box(y * y) - my * my, box(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    ssim = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return np.clip((1 - ssim) / 2, 0, 1)


def intrinsics(K: Array, scale: float) -> Array:
    """Pixel centres on integers: the outer edge of the image is what stays."""
    shift = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    return shift @ np.diag([scale, scale, 1]) @ np.linalg.inv(shift) @ K


def tensor(value: Array) -> Tensor:
    return torch.from_numpy(np.asarray(value))[None]
