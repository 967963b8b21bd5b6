"""Ray-cast textured rooms with exact depth, pose and intrinsics."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mdepth_fast.data.samples import Sample, SourceName, check_size, check_sources, make_sample

__all__ = ["SyntheticScenes"]

Array = NDArray[Any]

_FOCAL = 0.8  # focal length over image width
_LIGHT = np.array([0.35, -0.85, -0.4])  # towards the light, in the world (x right, y down, z forward)
_WAVES = 16
_MEAN_VELOCITY = np.array([0.0, 0.0, 0.2])  # metres a frame
_STEADY = np.array([0.28, 0.0, 0.28])  # sideways too: straight ahead, nothing moves at the image's centre


@dataclass(frozen=True)
class _Surface:
    """A solid texture: colour(x) = base + sum_k amplitude_k cos(frequency_k . x + phase_k), x in the world, metres.

    Because the colour belongs to the point and not to the view, every view of it agrees.
    """

    base: Array  # (3,)
    frequencies: Array  # (waves, 3), radians per metre
    phases: Array  # (waves,)
    amplitudes: Array  # (waves, 3)

    @staticmethod
    def draw(rng: np.random.Generator) -> "_Surface":
        directions = rng.normal(size=(_WAVES, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        wavelengths = np.geomspace(0.12, 1.6, _WAVES) * rng.uniform(0.8, 1.25, _WAVES)
        # Waves of like strength make an irregular pattern; one that dominated would repeat itself and mislead a match.
        grey = rng.uniform(0.6, 1.4, (_WAVES, 1)) * rng.choice([-1, 1], (_WAVES, 1))
        amplitudes = grey + 0.5 * rng.normal(size=(_WAVES, 3))
        amplitudes *= 0.32 / np.sqrt((amplitudes**2).sum(0))
        return _Surface(
            rng.uniform(0.35, 0.65, 3),
            (2 * np.pi / wavelengths[:, None] * directions).astype(np.float32),
            rng.uniform(0, 2 * np.pi, _WAVES).astype(np.float32),
            amplitudes.astype(np.float32),
        )

    def color(self, points: Array, footprint: Array) -> Array:
        """Colour (n,3) at points (n,3), band-limited: waves fade out where a pixel (`footprint` metres) spans them."""
        angles = points @ self.frequencies.T + self.phases
        rates = (self.frequencies**2).sum(1)
        fade = np.exp(-0.4 * (footprint**2)[:, None] * rates)
        return self.base + (np.cos(angles) * fade) @ self.amplitudes


@dataclass(frozen=True)
class _Scene:
    room: tuple[Array, Array]  # corners of the box that everything stands in
    boxes: list[tuple[Array, Array]]
    spheres: list[tuple[Array, float]]
    surfaces: list[_Surface]  # six of the room's faces, then boxes, then spheres

    @staticmethod
    def draw(rng: np.random.Generator) -> "_Scene":
        eye = rng.uniform(1.2, 1.7)  # height of the camera over the floor; y points down, the camera is at 0
        room = (
            np.array([-rng.uniform(2.5, 4.5), eye - rng.uniform(2.6, 3.6), -3.0]),
            np.array([rng.uniform(2.5, 4.5), eye, rng.uniform(7.0, 11.0)]),
        )
        boxes, spheres = [], []
        for _ in range(int(rng.integers(3, 6))):
            half = rng.uniform(0.2, 0.6, 3)
            # Nothing nearer than 1.6 m: the cameras move by less.
            centre = np.array([rng.uniform(-2.0, 2.0), eye - half[1], rng.uniform(1.6 + half[2], 6.0)])
            boxes.append((centre - half, centre + half))
        for _ in range(int(rng.integers(3, 6))):
            radius = rng.uniform(0.2, 0.6)
            centre = np.array([rng.uniform(-2.0, 2.0), rng.uniform(-0.8, eye - radius), rng.uniform(1.6 + radius, 6.0)])
            spheres.append((centre, radius))
        surfaces = [_Surface.draw(rng) for _ in range(6 + len(boxes) + len(spheres))]
        return _Scene(room, boxes, spheres, surfaces)


def _slabs(
    origin: Array, inverse: Array, low: Array, high: Array
) -> tuple[Array, Array, NDArray[np.intp], NDArray[np.intp]]:
    """Entry and exit distance (n,) of rays through a box, and the axis at which each happens; inverse: (3,n)."""
    first = (low - origin)[:, None] * inverse
    second = (high - origin)[:, None] * inverse
    near, far = np.minimum(first, second), np.maximum(first, second)
    enter = np.maximum(np.maximum(near[0], near[1]), near[2])
    leave = np.minimum(np.minimum(far[0], far[1]), far[2])
    # By comparison: NumPy reduces a short axis slowly.
    entered = np.where(near[0] == enter, 0, np.where(near[1] == enter, 1, 2))
    left = np.where(far[0] == leave, 0, np.where(far[1] == leave, 1, 2))
    return enter, leave, entered, left


def _dot(a: Array, b: Array) -> Array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _render(
    scene: _Scene, K: Array, pose: Array, height: int, width: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Image (h,w,3) and depth (h,w) of a camera with intrinsics K and camera-to-world `pose` (4,4)."""
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    camera_rays = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)]).reshape(3, -1)
    rays = pose[:3, :3] @ camera_rays  # (3,n), z = 1 in the camera: the distance along a ray is its depth
    origin = pose[:3, 3]
    with np.errstate(divide="ignore"):
        inverse = 1 / rays
    columns = np.arange(rays.shape[1])

    _, depth, _, axis = _slabs(origin, inverse, *scene.room)
    outward = rays[axis, columns] > 0
    surface = axis * 2 + outward
    normals = np.zeros_like(rays)
    normals[axis, columns] = np.where(outward, -1.0, 1.0)  # the room is seen from inside
    for index, (low, high) in enumerate(scene.boxes, 6):
        enter, leave, axis, _ = _slabs(origin, inverse, low, high)
        hit = np.flatnonzero((enter < leave) & (enter > 0) & (enter < depth))
        depth[hit], surface[hit], normals[:, hit] = enter[hit], index, 0
        normals[axis[hit], hit] = -np.sign(rays[axis[hit], hit])
    square = _dot(rays, rays)
    for index, (centre, radius) in enumerate(scene.spheres, 6 + len(scene.boxes)):
        half = (centre - origin) @ rays
        discriminant = half**2 - square * (((centre - origin) ** 2).sum() - radius**2)
        enter = (half - np.sqrt(np.maximum(discriminant, 0))) / square
        hit = np.flatnonzero((discriminant > 0) & (enter > 0) & (enter < depth))
        depth[hit], surface[hit] = enter[hit], index
        normals[:, hit] = ((origin - centre)[:, None] + rays[:, hit] * enter[hit]) / radius

    points = (origin[:, None] + rays * depth).T.astype(np.float32)
    slant = np.abs(_dot(normals, rays)) / np.sqrt(square)
    footprint = (depth / K[0, 0] / np.maximum(slant, 0.1)).astype(np.float32)
    color = np.empty_like(points)
    for index in np.unique(surface):
        mask = surface == index
        color[mask] = scene.surfaces[index].color(points[mask], footprint[mask])
    color *= (0.75 + 0.25 * ((_LIGHT / np.linalg.norm(_LIGHT)) @ normals))[:, None]
    image = (color.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return image.reshape(height, width, 3), depth.reshape(height, width).astype(np.float32)


def _rotation(axis_angle: Array) -> Array:
    angle = np.linalg.norm(axis_angle)
    if angle == 0:
        return np.eye(3)
    x, y, z = axis_angle / angle
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew


class SyntheticScenes(Dataset[Sample]):
    """`length` furnished rooms, ray-cast: boxes and spheres under band-limited solid textures, depths of 1 to 14 m.

    Sample i depends on (seed, i) alone, so another seed is a held-out set. Colours belong to points, not to views:
    warping a source with the true depth and pose gives the target, except where it is occluded.
    `sources`: frame offsets along a smooth motion of 0.1 to 0.42 m a frame, and "stereo", a second camera `baseline`
    metres to the right. T holds the true pose of every source; with `known_pose` the attribute `sources` says "known"
    for the offsets, so that a trainer takes it instead of predicting one. "depth" is exact (`evaluation=True`).
    `motion`: "free", another direction and turn in every room, or "steady", nearly the same in all, as of a camera on a
    car: a pose network has little to learn then, and depth is learned sooner. keep: keep every sample in memory once it
    has been rendered.
    """

    def __init__(
        self,
        length: int = 1000,
        height: int = 96,
        width: int = 160,
        *,
        seed: int = 0,
        sources: tuple[SourceName, ...] = (-1, 1),
        baseline: float = 0.2,
        known_pose: bool = False,
        motion: Literal["free", "steady"] = "free",
        keep: bool = False,
        evaluation: bool = False,
    ) -> None:
        self._size = check_size(height, width)
        if length < 1:
            raise ValueError(f"length: expected at least 1, got {length}")
        if seed < 0:
            raise ValueError(f"seed: expected a non-negative integer, got {seed}")
        if not 0 < baseline <= 1:
            raise ValueError(f"baseline: expected metres in (0, 1], got {baseline}")
        if motion not in ("free", "steady"):
            raise ValueError(f"motion: expected free or steady, got {motion!r}")
        self._motion = motion
        self._offsets = check_sources(sources, ("stereo",))
        for offset in self._offsets:
            if isinstance(offset, int) and abs(offset) > 3:
                raise ValueError(f"sources: expected offsets within -3..3, the camera leaves the room, got {offset}")
        self.sources: tuple[SourceName, ...] = tuple(
            "known" if known_pose and isinstance(offset, int) else offset for offset in self._offsets
        )
        self._length, self._seed, self._baseline, self._evaluation = length, seed, baseline, evaluation
        self._kept: dict[int, Sample] | None = {} if keep else None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._length:
            raise IndexError(f"index: expected 0..{self._length - 1}, got {index}")
        if self._kept is None:
            return self._draw(index)
        if index not in self._kept:
            self._kept[index] = self._draw(index)
        return self._kept[index].copy()

    def _draw(self, index: int) -> Sample:
        height, width = self._size
        rng = np.random.default_rng((self._seed, index))
        scene = _Scene.draw(rng)
        shift = rng.uniform(-0.03, 0.03, 2)
        K = np.array(
            [
                [_FOCAL * width, 0, (0.5 + shift[0]) * width - 0.5],
                [0, _FOCAL * width, (0.5 + shift[1]) * height - 0.5],
                [0, 0, 1],
            ]
        )
        # Mostly forward, some sideways, a little turning.
        velocity = np.array([rng.uniform(-0.25, 0.25), rng.uniform(-0.05, 0.05), rng.uniform(0.1, 0.3)])
        turn = rng.uniform(-0.02, 0.02, 3)
        if self._motion == "steady":
            velocity, turn = _STEADY + 0.1 * (velocity - _MEAN_VELOCITY), 0.1 * turn
        pose = np.eye(4)
        pose[:3, :3] = _rotation(np.array([rng.uniform(-0.05, 0.1), rng.uniform(-0.2, 0.2), rng.uniform(-0.03, 0.03)]))

        target, depth = _render(scene, K, pose, height, width)
        images, matrices = [], []
        for offset in self._offsets:
            motion = np.eye(4)  # source camera to target camera
            if isinstance(offset, str):
                motion[0, 3] = self._baseline
            else:
                motion[:3, :3] = _rotation(offset * turn)
                motion[:3, 3] = offset * velocity
            images.append(_render(scene, K, pose @ motion, height, width)[0])
            matrices.append(np.linalg.inv(motion))
        return make_sample(
            f"synthetic {self._seed}/{index}",
            target,
            images,
            K,
            [K] * len(images),
            matrices,
            self._size,
            depth=depth if self._evaluation else None,
        )
