"""What a folder of frames is worth for training: sizes, intrinsics, motion between neighbours, broken files."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdepth_fast.data.frames import read_intrinsics
from mdepth_fast.data.intrinsics import implausible_intrinsics
from mdepth_fast.data.samples import DataError, list_clip, read_depth, read_image, resize_image

__all__ = ["STATIC", "FolderReport", "check_folder", "image_motion", "thumbnail"]

# Shares of the image width. The first three are the project's choice: KITTI's neighbours at 10 Hz lie inside.
STATIC = 0.0005  # a third of a pixel of 640
_ENOUGH = 0.002  # what a source should move by at least
_TOO_FAR = 0.08
_DUPLICATE = 0.3  # mean difference, of 255
_EXPOSURE = 1.15  # ratio of the mean brightness
_WIDTH, _BLOCK, _STEP = 320, 64, 32
_TEXTURE, _PEAK = 2.0, 0.15  # least spread of a block, of 255, and least height of its correlation peak


@dataclass
class FolderReport:
    """The findings of `check_folder`. Motion is in shares of the image width; None is unknown."""

    folder: str
    frames: int
    sizes: dict[str, int]
    intrinsics: list[list[float]] | None
    unreadable: list[str]
    pairs: int
    motion: float | None
    suggested_sources: list[int] | None
    motion_at_suggested: float | None
    static: int
    duplicates: list[str]
    exposure_jumps: list[str]
    cuts: list[str]
    problems: list[str] = field(default_factory=list)
    depth: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def table(self) -> str:
        """The report as text: the findings, then what is wrong."""
        sizes = ", ".join(f"{count} of {size}" if len(self.sizes) > 1 else size for size, count in self.sizes.items())
        rows = [f"{self.folder}: {self.frames} frames, {sizes or 'none readable'} (width x height)"]
        if self.intrinsics:
            (fx, _, cx), (_, fy, cy), _ = self.intrinsics
            rows.append(f"intrinsics: fx {fx:.6g}, fy {fy:.6g}, cx {cx:.6g}, cy {cy:.6g}")
        if self.motion is not None:
            rows.append(f"motion between neighbours: {_share(self.motion)} (median of {self.pairs} pairs)")
        if self.pairs:
            rows.append(
                f"pairs: {self.static} static, {len(self.duplicates)} duplicates, {len(self.exposure_jumps)} jumps in "
                f"exposure, {len(self.cuts)} without a match"
            )
        if self.depth:
            rows.append(
                "depth: {files:.0f} maps, {minimum:.4g} to {maximum:.4g} m, median {median:.4g} m, {valid:.1%} of the "
                "pixels measured".format(**self.depth)
            )
        if self.suggested_sources:
            at = f", which move by {_share(self.motion_at_suggested)}" if self.motion_at_suggested is not None else ""
            rows.append(f"suggested: --data.sources={str(self.suggested_sources).replace(' ', '')}{at}")
        rows += [f"problem: {problem}" for problem in self.problems] or ["no problems found"]
        return "\n".join(rows)


def check_folder(
    folder: str | Path,
    intrinsics: str | Path | None = None,
    *,
    depth: str | Path | None = None,
    read_depth: Callable[[Path], NDArray[np.float32]] = read_depth,
    track: Callable[[Any], Iterable[Any]] = iter,
) -> FolderReport:
    """Looks at every frame of a folder as the data set `folder` reads it, in natural order of the names.

    Args:
        folder: folder of images.
        intrinsics: file of the camera matrix; None for K.txt in the folder.
        depth: folder of measured depth, of which the report gives range, median and share of pixels.
        read_depth: reads one of its files as metres, 0 = none, see `data.samples.read_depth`.
        track: may wrap the list of files in a progress bar.

    Raises:
        DataError: there is no such folder, or it has no images.
    """
    folder = Path(folder)
    paths = list_clip(folder)
    sizes: Counter[tuple[int, int]] = Counter()
    report = FolderReport(str(folder), len(paths), {}, None, [], 0, None, None, None, 0, [], [], [])
    last: tuple[Path, NDArray[np.float32]] | None = None
    motions: list[float] = []
    for path in track(paths):
        try:
            image = read_image(path)
        except DataError as error:
            report.unreadable.append(str(error))
            last = None
            continue
        sizes[image.shape[1], image.shape[0]] += 1
        grey = thumbnail(image)
        if last is not None and last[1].shape == grey.shape:
            _compare(report, motions, last[0], path, last[1], grey)
        last = path, grey
    report.sizes = {f"{width}x{height}": count for (width, height), count in sizes.most_common()}
    if motions:
        report.motion = float(np.median(motions))
        _suggest(report, paths)
    if depth is not None:
        _depth(report, Path(depth), read_depth, track)
    _intrinsics(report, Path(intrinsics or folder / "K.txt"), sizes)
    _judge(report)
    return report


def _compare(
    report: FolderReport, motions: list[float], one: Path, other: Path, a: NDArray[np.float32], b: NDArray[np.float32]
) -> None:
    name = f"{one.name} {other.name}"
    report.pairs += 1
    # Compared like this, also black frames have a ratio.
    dark, bright = sorted((float(a.mean()) + 1, float(b.mean()) + 1))
    if bright / dark > _EXPOSURE:
        report.exposure_jumps.append(name)
    if float(np.abs(a - b).mean()) < _DUPLICATE:
        report.duplicates.append(name)
        report.static += 1
        motions.append(0.0)
        return
    motion = image_motion(a, b)
    if motion is None:
        report.cuts.append(name)
        return
    report.static += motion < STATIC
    motions.append(motion)


def _suggest(report: FolderReport, paths: list[Path]) -> None:
    """The nearest offset whose frames move enough, measured on at most 20 pairs."""
    assert report.motion is not None
    offset = int(min(max(np.ceil(_ENOUGH / max(report.motion, 1e-6)), 1), 10))
    if offset >= len(paths):
        return
    report.suggested_sources = [-offset, offset]
    report.motion_at_suggested = report.motion
    if offset > 1:
        found = []
        for start in np.unique(np.linspace(0, len(paths) - 1 - offset, 20).astype(int)):
            try:
                a, b = (thumbnail(read_image(paths[start + step])) for step in (0, offset))
            except DataError:
                continue
            if a.shape == b.shape and (motion := image_motion(a, b)) is not None:
                found.append(motion)
        report.motion_at_suggested = float(np.median(found)) if found else None


def _depth(report: FolderReport, folder: Path, read: Callable[[Path], NDArray[np.float32]], track: Any) -> None:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _DEPTH_SUFFIXES)
    medians, lows, highs, valid, pixels = [], [], [], 0, 0
    for path in track(paths):
        try:
            values = read(path)
        except DataError as error:
            report.unreadable.append(str(error))
            continue
        measured = values[values > 0]
        pixels, valid = pixels + values.size, valid + measured.size
        if measured.size:
            medians.append(float(np.median(measured)))
            lows.append(float(measured.min()))
            highs.append(float(measured.max()))
    if not medians:
        report.problems.append(f"{folder}: no depth in any of {len(paths)} files")
        return
    report.depth = {
        "files": len(paths),
        "minimum": min(lows),
        "median": float(np.median(medians)),
        "maximum": max(highs),
        "valid": valid / pixels,
    }


_DEPTH_SUFFIXES = {".png", ".tif", ".tiff", ".npy", ".pgm"}


def _intrinsics(report: FolderReport, path: Path, sizes: Counter[tuple[int, int]]) -> None:
    if not path.is_file():
        report.problems.append(
            f"{path}: no camera matrix; write its 3x3 numbers, in pixels of the frames, to this file"
        )
        return
    try:
        K = read_intrinsics(path)
    except DataError as error:
        report.problems.append(str(error))
        return
    report.intrinsics = K.tolist()
    if sizes:
        ((width, height), _), *_ = sizes.most_common()
        fault = implausible_intrinsics(K, height, width, as_taken=True)
        report.problems += [f"{path}: {fault}"] if fault else []


def _judge(report: FolderReport) -> None:
    add = report.problems.append
    if report.unreadable:
        add(f"{len(report.unreadable)} files cannot be read, first {report.unreadable[0]}")
    if len(report.sizes) > 1:
        add("frames of several sizes; those of one clip must have one size")
    if report.pairs and report.static > 0.2 * report.pairs:
        add(
            f"{report.static} of {report.pairs} pairs are static: nothing is learnt from them; "
            "`mdepth-fast data prepare` drops such frames"
        )
    if report.motion_at_suggested is not None and report.motion_at_suggested > _TOO_FAR:
        add("neighbours are far apart: use more frames per second")
    if report.pairs and len(report.cuts) > 0.2 * report.pairs:
        add(f"{len(report.cuts)} of {report.pairs} neighbours do not match: are the frames of one clip, in order?")
    if report.pairs and len(report.exposure_jumps) > 0.05 * report.pairs:
        add(f"{len(report.exposure_jumps)} jumps in exposure: fix the camera's exposure, or expect noise in the loss")


def _share(motion: float | None) -> str:
    return "unknown" if motion is None else f"{100 * motion:.2f} % of the width, {640 * motion:.1f} pixels of 640"


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Grey values (h,320) of 0..255 of an image (H,W,3), at least 64 rows high."""
    height = max(round(image.shape[0] * _WIDTH / image.shape[1]), _BLOCK)
    small: NDArray[np.float32] = resize_image(image, height, _WIDTH).astype(np.float32) @ np.array(
        [0.299, 0.587, 0.114], np.float32
    )
    return small


def image_motion(one: NDArray[np.float32], other: NDArray[np.float32]) -> float | None:
    """The median displacement between two thumbnails, as a share of the width; None where too little matches.

    Blocks of 64 x 64 pixels are matched by phase correlation (Kuglin and Hines, 1975), which does not depend on the
    exposure, to fractions of a pixel. Rotation counts like translation. Displacements above 10 % of the width match
    nothing.
    """
    a, b = (_blocks(image) for image in (one, other))
    textured = np.minimum(a.std((1, 2)), b.std((1, 2))) > _TEXTURE
    if textured.sum() < max(3, len(a) / 8):
        return None
    window = np.hanning(_BLOCK)[:, None] * np.hanning(_BLOCK)
    spectra = [np.fft.rfft2((x - x.mean((1, 2), keepdims=True)) * window) for x in (a[textured], b[textured])]
    cross = spectra[0].conj() * spectra[1]
    surface = np.fft.irfft2(cross / (np.abs(cross) + 1e-9), s=(_BLOCK, _BLOCK))
    flat = surface.reshape(len(surface), -1)
    best = flat.argmax(1)
    peak = flat.max(1)
    shifts = []
    for axis, position in enumerate(np.unravel_index(best, (_BLOCK, _BLOCK))):
        index = list(np.unravel_index(best, (_BLOCK, _BLOCK)))
        sides = []
        for step in (-1, 1):
            index[axis] = (position + step) % _BLOCK
            sides.append(surface[np.arange(len(best)), index[0], index[1]].clip(min=0))
        # A peak between two pixels shares its height among them.
        fraction = (sides[1] - sides[0]) / (peak + sides[0] + sides[1])
        shifts.append((position + _BLOCK // 2) % _BLOCK - _BLOCK // 2 + fraction)
    sure = peak > _PEAK
    if sure.sum() < max(3, textured.sum() / 4):
        return None
    return float(np.median(np.hypot(*shifts)[sure])) / _WIDTH


def _blocks(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Overlapping blocks (n,64,64)."""
    views = np.lib.stride_tricks.sliding_window_view(image, (_BLOCK, _BLOCK))[::_STEP, ::_STEP]
    return views.reshape(-1, _BLOCK, _BLOCK)
