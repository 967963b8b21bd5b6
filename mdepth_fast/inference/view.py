"""A recording for the Rerun viewer: image, depth, camera, points and trajectory, frame by frame."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdepth_fast.data.intrinsics import ASSUMED_VIEW, implausible_intrinsics, intrinsics_from_view
from mdepth_fast.data.samples import DataError, natural_key
from mdepth_fast.data.trajectory import Trajectory
from mdepth_fast.files import replacing
from mdepth_fast.inference.frames import Frame, Source, Unreadable
from mdepth_fast.inference.writers import DepthMap, point_cloud, read_map
from mdepth_fast.kinds import describe, is_inverse
from mdepth_fast.visualize import colorize, valid_values

__all__ = ["MapFiles", "Recorded", "record"]

_FLYING = 0.05  # of the points, see `write_map`
_SPARE = 256 << 20  # bytes of disk: more than the frames that wait for being written
_SUFFIXES = ("npy", "tiff", "png")  # the exact ones first
_ENDING = "_depth"


@dataclass
class Recorded:
    """What `record` has written: frames, points, frames that could not be read, what to tell the user."""

    frames: int = 0
    points: int = 0
    skipped: list[Unreadable] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class MapFiles:
    """Maps that `mdepth-fast predict` has written into a folder, by the name of their frame.

    folder: where `<name>_depth.npy`, `.tiff` or `.png` lie; of a clip, its own folder or the one around it, in which
    it has the name `clip`. limit: only the first so many. `DataError` where there are none.
    """

    def __init__(self, folder: Path, clip: str = "", limit: int | None = None) -> None:
        self.folder = folder / clip if clip and (folder / clip).is_dir() else folder
        self.names = sorted(
            {
                path.stem.removesuffix(_ENDING)
                for suffix in _SUFFIXES
                for path in self.folder.glob(f"*{_ENDING}.{suffix}")
            },
            key=natural_key,
        )[:limit]
        if not self.names:
            found = ", ".join(f"NAME{_ENDING}.{suffix}" for suffix in _SUFFIXES)
            raise DataError(f"{self.folder}: expected maps that predict has written ({found}), found none")

    def __call__(self, frame: Frame) -> DepthMap:
        """The map of a frame. `DataError` if it is missing, or of another size than the image."""
        for suffix in _SUFFIXES:
            path = self.folder / f"{frame.name}{_ENDING}.{suffix}"
            if path.exists():
                break
        else:
            raise DataError(f"{self.folder}: no map of {frame.name}")
        map = read_map(path)
        if not frame.image.size:
            return map
        if map.values.shape != frame.image.shape[:2]:
            raise DataError(f"{path}: expected the size of its image, {frame.image.shape[:2]}, got {map.values.shape}")
        return replace(map, image=frame.image)

    def frames(self) -> Iterator[Frame]:
        """Frames of these names, without images."""
        for index, name in enumerate(self.names):
            yield Frame(index, name, np.empty((0, 0, 3), np.uint8))


def record(
    source: Source | MapFiles,
    mapped: Callable[[Frame], DepthMap],
    path: Path,
    *,
    K: NDArray[np.float64] | None = None,
    view: float | None = None,
    poses: Trajectory | None = None,
    points: int = 50_000,
    every: int = 1,
    advance: Callable[[int], Any] = lambda count: None,
) -> Recorded:
    """Writes the recording; it appears whole or not at all. Memory does not grow with the number of frames.

    World and cameras have x to the right, y down, z forward. Without poses the camera stands at the origin. Inverse
    depth and disparity give a picture, and no points.

    Args:
        source: of the frames; `MapFiles` where there are no images.
        mapped: gives the map of a frame: a network's, see `predict_image`, or that of a file.
        K: camera (3, 3) in pixels of the frames; else the maps' own, else the one of `view`.
        view: horizontal angle of view in degrees; None for `ASSUMED_VIEW`, with a note that says so.
        poses: camera to world, row i of frame i, in the unit of the depth.
        points: at most, of a frame.
        every: only every n-th frame.

    Raises:
        ValueError, DataError: for what is wrong with all frames: more of them than poses, or none that can be read.
    """
    import rerun as rr
    import rerun.blueprint as rrb

    length = len(source.names) if isinstance(source, MapFiles) else source.length
    if poses is not None and length is not None and length > len(poses):
        raise ValueError(f"poses: expected one for each of {length} frames, got {len(poses)}")
    result = Recorded()
    layout = rrb.Blueprint(
        rrb.Horizontal(
            rrb.Spatial3DView(origin="world", contents=["+ /world/**", "- /world/camera/depth"], name="Points"),
            rrb.Vertical(
                rrb.Spatial2DView(origin="world/camera", contents=["+ $origin/image"], name="Image"),
                rrb.Spatial2DView(origin="world/camera", contents=["+ $origin/depth"], name="Depth"),
            ),
            column_shares=[2, 1],
        ),
        collapse_panels=True,
    )
    with replacing(path) as temporary:
        _check_space(temporary)
        stream = rr.RecordingStream("mdepth_fast")
        try:
            stream.save(temporary, default_blueprint=layout)
            stream.log("world", rr.ViewCoordinates.RDF, static=True)
            if poses is not None:
                stream.log("world/trajectory", rr.LineStrips3D([poses.positions]), static=True)
            for frame, map in _maps(source, mapped, every, result, advance):
                if poses is not None and frame.index >= len(poses):
                    raise ValueError(f"poses: expected one for each frame, got {len(poses)}, none for {frame.name}")
                stream.set_time("frame", sequence=frame.index)
                if isinstance(source, Source) and source.clip:
                    stream.set_time("time", duration=float(frame.pts * source.time_base))
                _check_space(temporary)
                camera = _camera(map, K, view, result)
                pose = np.eye(4) if poses is None else poses.poses[frame.index]
                result.points += _log(stream, replace(map, K=camera), pose, points)
                result.frames += 1
            if not result.frames:
                raise DataError(result.skipped[0].reason if result.skipped else "input: no frames")
            stream.flush()
        finally:
            stream.disconnect()
    return result


def _check_space(path: Path) -> None:
    """OSError where the disk is nearly full: once it is, Rerun's writer waits for ever."""
    if (free := shutil.disk_usage(path.parent).free) < _SPARE:
        raise OSError(f"{path.parent}: expected {_SPARE >> 20} MiB of free space for a recording, got {free >> 20}")


def _maps(
    source: Source | MapFiles, mapped: Callable[[Frame], DepthMap], every: int, result: Recorded, advance: Any
) -> Iterator[tuple[Frame, DepthMap]]:
    def wanted(index: int, name: str, changed: float) -> bool:
        return index % every == 0

    frames: Any = source.frames() if isinstance(source, MapFiles) else source.read(wanted)
    with closing(frames):
        for frame in frames:
            if frame.index % every:
                continue
            advance(1)
            if isinstance(frame, Unreadable):
                result.skipped.append(frame)
                continue
            try:
                map = mapped(frame)
            except DataError as error:
                result.skipped.append(Unreadable(frame.index, frame.name, str(error)))
                continue
            yield frame, map


def _camera(map: DepthMap, K: NDArray[np.float64] | None, view: float | None, result: Recorded) -> NDArray[np.float64]:
    height, width = map.values.shape
    found = K if K is not None else map.K
    if found is None:
        found = intrinsics_from_view(ASSUMED_VIEW if view is None else view, height, width)
        if view is None:
            _note(result, f"camera: assumed, {ASSUMED_VIEW:g} degrees from left to right; --K or --view says better")
    if problem := implausible_intrinsics(found, height, width):
        _note(result, f"K: {problem}")
    if is_inverse(map.kind):
        _note(result, f"no points: {describe(map.kind)} is not depth")
    return found


def _note(result: Recorded, text: str) -> None:
    if text not in result.notes:
        result.notes.append(text)


def _log(stream: Any, map: DepthMap, pose: NDArray[np.float64], most: int) -> int:
    """One frame; how many points it has."""
    import rerun as rr

    assert map.K is not None
    height, width = map.values.shape
    stream.log("world/camera", rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
    valid = valid_values(map.values, map.kind)
    near = float(np.median(map.values[valid])) if valid.any() and not is_inverse(map.kind) else 1.0
    K = map.K.copy()
    K[:2, 2] += 0.5  # its pixel 0 reaches from 0 to 1
    stream.log(
        "world/camera",
        rr.Pinhole(
            image_from_camera=K,
            resolution=[width, height],
            camera_xyz=rr.ViewCoordinates.RDF,
            image_plane_distance=0.2 * near,
        ),
    )
    if map.image is not None:
        stream.log("world/camera/image", rr.Image(map.image).compress(jpeg_quality=90))
    if is_inverse(map.kind):
        stream.log("world/camera/depth", rr.Image(colorize(map.values, kind=map.kind)).compress(jpeg_quality=90))
        return 0
    # Half precision halves the file, and the viewer shows no more digits.
    shown = np.where(valid, map.values, 0).clip(max=6e4).astype(np.float16)
    stream.log("world/camera/depth", rr.DepthImage(shown, meter=1.0))
    points, colours = point_cloud(map, flying=_FLYING, most=most)
    stream.log("world/points", rr.Points3D(points @ pose[:3, :3].T + pose[:3, 3], colors=colours))
    return len(points)
