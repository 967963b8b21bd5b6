"""Sequences as SfMLearner and vid2depth store them: the frames of each side by side in one image."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from mdepth_fast.data.frames import read_intrinsics
from mdepth_fast.data.samples import (
    DataError,
    Sample,
    SourceName,
    check_size,
    check_sources,
    make_sample,
    read_image,
    read_matrices,
    within,
)

__all__ = ["Triplets"]


class Triplets(Dataset[Sample]):
    """Prepared sequences: `<root>/<folder>/<frame>.jpg` (or .png) and `<root>/<folder>/<frame>_cam.txt`.

    The image holds the frames side by side in temporal order, the other file nine numbers, K row by row, in pixels of a
    frame. split: a file of lines "folder frame", or the lines themselves; train.txt and val.txt in the root are such
    files. sources: the offsets of all frames but the target, which together with 0 are consecutive; (-1, 1) for
    triplets, (-2, -1, 1, 2) for sequences of five. K follows the frames to height and width.

    A file that is missing, an image whose width is not a multiple of the number of frames, or numbers that are no
    camera matrix, is a `DataError` naming it.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | Path | Iterable[str],
        height: int = 128,
        width: int = 416,
        *,
        sources: tuple[SourceName, ...] = (-1, 1),
    ) -> None:
        self._root, self._size = Path(root), check_size(height, width)
        self.sources: tuple[SourceName, ...] = check_sources(sources, ())
        offsets = sorted([0, *(source for source in self.sources if isinstance(source, int))])
        if offsets != list(range(offsets[0], offsets[-1] + 1)) or len(offsets) < 2:
            raise ValueError(f"sources: expected offsets that are consecutive with 0, such as (-1, 1), got {sources!r}")
        self._offsets = offsets
        where = "split"
        if isinstance(split, (str, Path)):
            where = str(split)
            try:
                lines = Path(split).read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{split}: cannot be read as a split ({error})") from error
        else:
            lines = list(split)
        self._frames: list[tuple[str, str]] = []
        for number, line in enumerate(lines, 1):
            words = line.split()
            if words and len(words) != 2:
                raise DataError(f"{where}, line {number}: expected 'folder frame', got {line.strip()!r}")
            if words:
                folder, _, frame = within(root, "/".join(words), f"{where}, line {number}").rpartition("/")
                self._frames.append((folder, frame))
        if not self._frames:
            raise DataError(f"{where}: expected lines 'folder frame', got none")

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0..{len(self) - 1}, got {index}")
        folder, frame = self._frames[index]
        place = self._root / folder
        path = place / f"{frame}.jpg"
        if not path.is_file() and (place / f"{frame}.png").is_file():
            path = place / f"{frame}.png"
        strip = read_image(path)
        count = len(self._offsets)
        if strip.shape[1] % count:
            raise DataError(f"{path}: expected {count} frames side by side, got a width of {strip.shape[1]}")
        frames = dict(zip(self._offsets, np.split(strip, count, axis=1)))
        camera = place / f"{frame}_cam.txt"
        K = read_matrices(camera, (9, 3))
        if K.size != 9:
            raise DataError(f"{camera}: expected the nine numbers of K, got {K.tolist()}")
        try:
            K = read_intrinsics(K.reshape(3, 3))
        except ValueError as error:
            raise DataError(f"{camera}: {error}") from None
        sources = [frames[source] for source in self.sources if isinstance(source, int)]
        unknown = [np.eye(4)] * len(sources)
        name = f"{folder}/{frame}"
        return make_sample(name, frames[0], sources, K, [K] * len(sources), unknown, self._size)
