"""Textured layers that move by affine maps, with exact flow and occlusion."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdepth_fast.data.flow import FlowFile, FlowPairs, FlowSample, make_flow_sample
from mdepth_fast.data.samples import check_size
from mdepth_fast.data.synthetic import _Surface

__all__ = ["SyntheticFlow"]

Array = NDArray[Any]

_METRE = 24.0  # pixels on a metre of texture, whose waves are 0.12 to 1.6 m long


@dataclass(frozen=True)
class _Layer:
    """A plane with a texture, in the coordinates of the first image; the whole plane, or what an ellipse holds."""

    surface: _Surface
    centre: Array  # (2,) of the motion and of the ellipse
    matrix: Array  # (2,2) of the motion: x -> matrix (x - centre) + centre + shift
    shift: Array  # (2,), pixels
    ellipse: Array | None  # (2,2): inside where |ellipse (x - centre)| < 1

    @staticmethod
    def draw(rng: np.random.Generator, height: int, width: int, motion: float, whole: bool) -> "_Layer":
        surface = _Surface.draw(rng)
        size = np.array([width, height])
        centre = size / 2 if whole else rng.uniform(0, 1, 2) * size
        angle, factor, turn = rng.uniform(-0.04, 0.04), 1 + rng.uniform(-0.04, 0.04), rng.uniform(0, np.pi)
        shift, axes = rng.uniform(-motion, motion, 2), rng.uniform(0.12, 0.3, 2) * min(height, width)
        ellipse = None if whole else _turn(turn) / axes[:, None]
        return _Layer(surface, centre, factor * _turn(angle), shift, ellipse)

    def moved(self, points: Array) -> Array:
        """Points (n,2) of the first image in the second."""
        return (points - self.centre) @ self.matrix.T + self.centre + self.shift

    def back(self, points: Array) -> Array:
        """The inverse of `moved`."""
        return (points - self.centre - self.shift) @ np.linalg.inv(self.matrix).T + self.centre

    def holds(self, points: Array) -> NDArray[np.bool_]:
        """Which points (n,2) of the first image belong to the layer."""
        if self.ellipse is None:
            return np.ones(len(points), bool)
        return (((points - self.centre) @ self.ellipse.T) ** 2).sum(1) < 1

    def color(self, points: Array) -> Array:
        """Colour (n,3) at points (n,2) of the first image."""
        plane = np.zeros((len(points), 3), np.float32)
        plane[:, :2] = points / _METRE
        return self.surface.color(plane, np.full(len(points), 1 / _METRE, np.float32))


def _turn(angle: float) -> Array:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


class SyntheticFlow(FlowPairs):
    """`length` pairs of a moving background under moving ellipses, all with band-limited textures.

    Pair i depends on (seed, i) and the other arguments alone, so another seed is a held-out set. Every layer moves by
    an affine map of its own: a shift of up to `motion` pixels along each axis, a rotation of up to 0.04 radians, a
    scale within 4 percent. Flow, `valid` (everywhere) and `visible` (not covered by another layer, inside the second
    image) are exact. objects: at most so many ellipses. keep: keep every pair in memory once it has been drawn.
    """

    def __init__(
        self,
        length: int = 1000,
        height: int = 64,
        width: int = 64,
        *,
        seed: int = 0,
        motion: float = 4.0,
        objects: int = 2,
        keep: bool = False,
    ) -> None:
        self._size = check_size(height, width)
        if length < 1:
            raise ValueError(f"length: expected at least 1, got {length}")
        if seed < 0:
            raise ValueError(f"seed: expected a non-negative integer, got {seed}")
        if not 0 <= motion <= min(height, width):
            raise ValueError(f"motion: expected pixels from 0 to the shorter side {min(height, width)}, got {motion}")
        if objects < 0:
            raise ValueError(f"objects: expected a non-negative integer, got {objects}")
        super().__init__([f"synthetic {seed}/{index}" for index in range(length)])
        self._seed, self._motion, self._objects = seed, motion, objects
        self._kept: dict[int, FlowSample] | None = {} if keep else None

    def read(self, index: int) -> FlowSample:
        if self._kept is None:
            return self._draw(index)
        if index not in self._kept:
            self._kept[index] = self._draw(index)
        return self._kept[index].copy()

    def _draw(self, index: int) -> FlowSample:
        height, width = self._size
        rng = np.random.default_rng((self._seed, index))
        count = 1 + int(rng.integers(0, self._objects + 1))
        layers = [_Layer.draw(rng, height, width, self._motion, whole=number == 0) for number in range(count)]
        v, u = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        pixels = np.stack([u, v], -1).reshape(-1, 2).astype(np.float64)

        first, top = self._render(layers, [pixels] * count)
        second, _ = self._render(layers, [layer.back(pixels) for layer in layers])
        flow = np.empty_like(pixels)
        visible = np.empty(len(pixels), bool)
        for number, layer in enumerate(layers):
            own = top == number
            target = layer.moved(pixels[own])
            flow[own] = target - pixels[own]
            shown = (target >= 0).all(1) & (target <= [width - 1, height - 1]).all(1)
            for above in layers[number + 1 :]:
                shown &= ~above.holds(above.back(target))
            visible[own] = shown
        truth = FlowFile(flow.reshape(height, width, 2).astype(np.float32), np.ones((height, width), bool))
        return make_flow_sample(self.names[index], first, second, truth, visible.reshape(height, width))

    def _render(self, layers: list[_Layer], points: list[Array]) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
        """An image (h,w,3) and which layer is on top, (h w,); points: (h w,2), the pixels in each layer's own place."""
        top = np.zeros(len(points[0]), np.intp)
        for number, (layer, at) in enumerate(zip(layers, points)):
            top[layer.holds(at)] = number
        color = np.empty((len(top), 3))
        for number, (layer, at) in enumerate(zip(layers, points)):
            color[top == number] = layer.color(at[top == number])
        return (color.clip(0, 1) * 255 + 0.5).astype(np.uint8).reshape(*self._size, 3), top
