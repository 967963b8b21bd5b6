"""Where the images for a prediction come from: files, WebDataset shards, a video or a camera, one frame at a time."""

import glob
import io
import sys
import tarfile
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdepth_fast.data.samples import (
    DataError,
    check_pixels,
    list_images,
    natural_key,
    read_image,
    upright_frame,
    upright_rgb,
)
from mdepth_fast.data.shards import SHARD_SUFFIX, ends_early, members

__all__ = ["Camera", "Frame", "ImageFiles", "Shards", "Source", "Unreadable", "VideoFile", "open_sources"]

Image = NDArray[np.uint8]

Wanted = Callable[[int, str, float], bool]
"""Whether to read the frame of that number and name, from a file last changed at that time (0 if nothing says)."""

# fmt: off
VIDEO_SUFFIXES = frozenset((
    ".3gp", ".avi", ".flv", ".h264", ".hevc", ".m2ts", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
    ".aac", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav", ".wma",
))
# fmt: on
"""Names of files that are opened as a video. Audio is among them: the error then says that there are no pictures."""

_WORTH_SEEKING = 250  # frames: the usual distance of key frames, at most

_SHARD_IMAGES = {"bmp", "jpeg", "jpg", "png", "ppm", "tif", "tiff", "webp"}


@dataclass(frozen=True)
class Frame:
    """One image: its number in the source, the name of its outputs, RGB uint8 (H, W, 3), and its time in a video.

    pts: presentation time of a clip's frame in units of the source's `time_base`. changed: when its file was last
    changed, in seconds; 0 where nothing says so.
    """

    index: int
    name: str
    image: Image
    pts: int = 0
    changed: float = 0.0


@dataclass(frozen=True)
class Unreadable:
    """A frame that cannot be read, though the next one may: its number, what to call it, and why."""

    index: int
    name: str
    reason: str


class Source(ABC):
    """Images in a fixed order.

    Attributes:
        title: what messages call it.
        name: of the files that hold a whole clip, and of the folder of its frames; "" for images.
        length: frames, None if unknown.
        keys: what it reads, by name, each with what tells that it has changed.
        live: frames come as time goes by, and once.
        clip: frames follow each other in time, so that they make a video.
        time_base: unit of the frames' `pts`, in seconds. rate: frames per second, on average. Both of a clip.
    """

    title: str
    name = ""
    length: int | None = None
    keys: dict[str, Any]
    live = False
    clip = False
    time_base = Fraction(1, 1000)
    rate = Fraction(25)

    def entries(self) -> Iterator[tuple[int, str, float]]:
        """Number, name and time of change of every frame, of a source that knows them without reading."""
        raise ValueError(f"{self.title}: expected images or a video, whose frames are known in advance")

    @abstractmethod
    def read(self, wanted: Wanted) -> Iterator[Frame | Unreadable]:
        """The frames that are wanted, in order. Frames that are not are passed over without decoding if possible.

        `DataError` where nothing more can be read.
        """

    def sample(self, count: int) -> Iterator[Frame]:
        """About `count` frames that stand for all: evenly spaced where the length is known, else the first ones."""
        step = 1 if self.length is None else max(self.length / count, 1.0)
        numbers = {round(position * step) for position in range(count)}
        last = max(numbers)
        for frame in self.read(lambda index, name, time: index in numbers):
            if isinstance(frame, Frame):
                yield frame
            if frame.index >= last:
                return


class ImageFiles(Source):
    """Image files of any sizes; each gives its name to its outputs."""

    def __init__(self, paths: Sequence[Path], *, white_level: float | None = None) -> None:
        self.paths, self._white_level = list(paths), white_level
        self.length = len(self.paths)
        self.keys = {str(folder.resolve()): white_level for folder in {path.parent for path in self.paths}}
        self.title = str(self.paths[0] if len(self.paths) == 1 else self.paths[0].parent)

    def entries(self) -> Iterator[tuple[int, str, float]]:
        for index, path in enumerate(self.paths):
            try:
                yield index, path.stem, path.stat().st_mtime
            except OSError:
                yield index, path.stem, 0.0  # reading it says what is wrong

    def read(self, wanted: Wanted) -> Iterator[Frame | Unreadable]:
        for entry in self.entries():
            if not wanted(*entry):
                continue
            index, name, changed = entry
            path = self.paths[index]
            try:
                image = read_image(path, upright=True, white_level=self._white_level)
                yield Frame(index, name, image, changed=changed)
            except DataError as error:
                yield Unreadable(index, str(path), str(error))


class Shards(Source):
    """The images in WebDataset shards: tar files, read from front to back.

    An image `key.jpg` (or .png, ...) of `shard.tar` is named `shard/key`; other members are passed over. A shard that
    is damaged is unreadable from there on.

    names: of the shards, which are those of the folders of their outputs.
    """

    def __init__(self, paths: Sequence[Path], *, white_level: float | None = None) -> None:
        self.paths, self._white_level = list(paths), white_level
        level = [] if white_level is None else [white_level]
        self.keys = {str(path.resolve()): [*_changed(path), *level] for path in self.paths}
        self.title = str(self.paths[0])
        self.names = [SHARD_SUFFIX.sub("", path.name) for path in self.paths]

    def read(self, wanted: Wanted) -> Iterator[Frame | Unreadable]:
        index = 0
        for path, folder in zip(self.paths, self.names):
            found, names = 0, set[int]()
            try:
                with tarfile.open(path, "r|*") as shard:
                    for member in members(shard):
                        inside = PurePosixPath(member.name)
                        key, _, suffix = inside.name.partition(".")
                        if not member.isfile() or suffix.lower() not in _SHARD_IMAGES:
                            continue
                        found += 1
                        name = str(PurePosixPath(folder, *inside.parts[:-1], key))
                        where = f"{path}: {member.name}"
                        if inside.is_absolute() or ".." in inside.parts:
                            yield Unreadable(index, where, f"{where}: expected a name inside of the shard")
                        elif hash(name) in names:
                            yield Unreadable(index, where, f"{where}: a second image of this name")
                        elif wanted(index, name, 0.0):
                            yield self._frame(index, name, where, shard.extractfile(member))
                        names.add(hash(name))
                        index += 1
                if ends_early(path):
                    raise tarfile.ReadError("it ends without a mark of the end")
            except (tarfile.TarError, EOFError, OSError) as error:
                yield Unreadable(index, str(path), f"{path}: cannot be read on as a tar file ({error})")
                index += 1
                continue
            if not found:
                kinds = ", ".join(sorted(_SHARD_IMAGES))
                yield Unreadable(index, str(path), f"{path}: expected images named key.suffix ({kinds}), found none")
                index += 1

    def _frame(self, index: int, name: str, where: str, file: Any) -> Frame | Unreadable:
        from PIL import Image as pillow

        try:
            with pillow.open(io.BytesIO(file.read())) as image:
                check_pixels(where, *image.size)
                return Frame(index, name, upright_rgb(image, self._white_level))
        except DataError as error:
            return Unreadable(index, where, str(error))
        except (SyntaxError, ValueError, pillow.UnidentifiedImageError, pillow.DecompressionBombError) as error:
            return Unreadable(index, where, f"{where}: cannot be read as an image ({error})")
        except OSError as error:  # Pillow's word for a truncated image, and the tar's for a truncated file
            if isinstance(error, tarfile.TarError):
                raise
            return Unreadable(index, where, f"{where}: cannot be read as an image ({error})")


class VideoFile(Source):
    """The frames of a video file, upright as its metadata say.

    Opening it reads all packets without decoding them, so that length and times are known and any frame can be sought.
    The times take 8 bytes a frame.
    """

    clip = True

    def __init__(self, path: Path) -> None:
        import av

        self.path = path
        self.name = path.stem
        self.title = str(path)
        self.keys = {str(path.resolve()): _changed(path)}
        times = array("q")
        self._timed, packets = True, 0
        with _opened(str(path), self.title) as container:
            stream = _pictures(container, self.title)
            self.time_base = Fraction(stream.time_base)
            self.rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
            claimed = stream.frames
            try:
                for packet in container.demux(stream):
                    if not packet.size:
                        continue
                    packets += 1
                    if packet.is_discard:
                        continue
                    if packet.pts is None:
                        self._timed = False
                    times.append(packet.pts or 0)
            except av.error.FFmpegError:
                pass  # `read` comes to that place, too, and says so
        if not times:
            raise DataError(f"{path}: expected a video, got one without frames")
        self._times = array("q", sorted(times))
        self._timed = self._timed and all(a < b for a, b in zip(self._times, self._times[1:]))
        self.length = self.frames = len(times)
        self._missing = max(claimed - packets, 0)
        """Frames that the file announces and does not have: it is truncated."""

    def pts(self, index: int) -> int:
        """The time of a frame, in units of `time_base`."""
        if self._timed and index < len(self._times):
            return self._times[index]
        return round(index / self.rate / self.time_base)

    def entries(self) -> Iterator[tuple[int, str, float]]:
        return ((index, f"{index:06d}", 0.0) for index in range(len(self._times)))

    def read(self, wanted: Wanted) -> Iterator[Frame | Unreadable]:
        todo = bytearray(wanted(*entry) for entry in self.entries())
        first, last = todo.find(1), todo.rfind(1)
        if first < 0:
            return
        damaged = self._missing > 0
        with _opened(str(self.path), self.title) as container:
            stream = _pictures(container, self.title)
            while first >= 0:
                if self._timed and first:
                    container.seek(self._times[first], stream=stream)
                first = -1
                for index, frame in self._decoded(container, stream):
                    if frame is None:
                        damaged = True
                        continue
                    if index < len(todo) and todo[index]:
                        todo[index] = 0
                        yield Frame(index, f"{index:06d}", upright_frame(frame), self.pts(index))
                    following = todo.find(1, index)
                    if following < 0 or (self._timed and following - index > _WORTH_SEEKING):
                        first = following
                        break
        if damaged:
            for index, left in enumerate(todo):
                if left:
                    name = f"{self.path}: frame {index}"
                    yield Unreadable(index, name, f"{name} cannot be decoded")
            if self._missing and last == len(todo) - 1:
                name = f"{self.path}: its last {self._missing} frames"
                yield Unreadable(last, name, f"{name} are missing, the file is truncated")

    def _decoded(self, container: Any, stream: Any) -> Iterator[tuple[int, Any]]:
        """Frames with their numbers, which their times tell, or else counting; None for what cannot be decoded."""
        import av

        number = 0
        try:
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    yield -1, None
                    continue
                for frame in frames:
                    if not self._timed:
                        yield number, frame
                    elif frame.pts is not None:
                        index = bisect_left(self._times, frame.pts)
                        if index < len(self._times) and self._times[index] == frame.pts:
                            yield index, frame
                    number += 1
        except av.error.FFmpegError as error:
            raise DataError(f"{self.path}: cannot be read on as a video ({error.strerror})") from error


class Camera(Source):
    """A webcam by its number, until it is interrupted or `limit` frames have come."""

    live = clip = True

    def __init__(self, number: int, limit: int | None = None) -> None:
        self.number, self.length = number, limit
        self.name = f"camera{number}"
        self.title = f"camera {number}"
        self.keys = {self.title: None}
        if sys.platform.startswith("linux"):
            self._device = (f"/dev/video{number}", "v4l2")
        elif sys.platform == "darwin":
            self._device = (str(number), "avfoundation")
        else:
            raise ValueError(f"{self.title}: cameras are read on Linux and macOS, not on {sys.platform}")
        self._open().close()  # an error comes before anything else is done

    def read(self, wanted: Wanted) -> Iterator[Frame | Unreadable]:
        import av

        with self._open() as container:
            stream = _pictures(container, self.title)
            start: int | None = None
            try:
                for index, frame in enumerate(container.decode(stream)):
                    if self.length is not None and index >= self.length:
                        return
                    seconds = frame.time if frame.time is not None else index / float(self.rate)
                    now = round(seconds / self.time_base)
                    start = now if start is None else start
                    yield Frame(index, f"{index:06d}", upright_frame(frame), now - start)
            except av.error.FFmpegError as error:
                raise DataError(f"{self.title}: cannot be read on ({error.strerror})") from error

    def sample(self, count: int) -> Iterator[Frame]:
        return iter(())

    def _open(self) -> Any:
        file, kind = self._device
        return _opened(file, f"{self.title} ({file})", kind)


def open_sources(inputs: Sequence[str], *, limit: int | None = None, white_level: float | None = None) -> list[Source]:
    """The sources that the inputs of a command name: all image files as one, all shards as one, each video and camera.

    An input is an image, a folder of images, a video, a shard (.tar, .tar.gz), the number of a camera, or a pattern
    such as `"clips/*.mp4"` for files of these kinds. limit: only the first so many frames of each source.
    white_level: of images and shards, see `data.samples.read_image`.

    Raises:
        FileNotFoundError: there is no such input, or no image in the folder.
        DataError: a file that is no video.
        ValueError: outputs would have the same name.
    """
    images: list[Path] = []
    shards: list[Path] = []
    others: list[Source] = []
    for text in inputs:
        path = Path(text)
        paths = [path]
        if path.is_dir():
            paths = list_images(path)
            if not paths:
                raise FileNotFoundError(f"{path}: no images in this folder")
        elif not path.exists():
            if text.isdecimal():
                others.append(Camera(int(text), limit))
                continue
            names = glob.glob(text, recursive=True)  # noqa: PTH207  (a pattern may be absolute)
            paths = [Path(name) for name in sorted(names, key=natural_key) if Path(name).is_file()]
            if not paths:
                raise FileNotFoundError(f"{text}: no such image or folder, nor a video, shard or camera")
        for found in paths:
            if SHARD_SUFFIX.search(found.name):
                shards.append(found)
            elif found.suffix.lower() in VIDEO_SUFFIXES:
                others.append(_limited(VideoFile(found), limit))
            else:
                images.append(found)
    counts = Counter(path.stem for path in images)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"input: expected images of different names, got {twice[0]} twice")
    sources: list[Source] = [ImageFiles(images[:limit], white_level=white_level)] if images else []
    sources += [_limited(Shards(shards, white_level=white_level), limit)] if shards else []
    names = [name for source in sources if isinstance(source, Shards) for name in source.names]
    names += [source.name for source in others]
    if len(set(names)) < len(names):
        raise ValueError("input: expected videos and shards of different names, some differ in folder or suffix only")
    return sources + others


def _limited(source: Source, limit: int | None) -> Source:
    """The source, ending after `limit` frames."""
    if limit is None or (source.length is not None and source.length <= limit):
        return source
    read, entries = source.read, source.entries

    def some(wanted: Wanted) -> Iterator[Frame | Unreadable]:
        for frame in read(lambda index, name, changed: index < limit and wanted(index, name, changed)):
            if frame.index >= limit:
                return
            yield frame

    source.read = some  # type: ignore[method-assign]
    source.entries = lambda: takewhile(lambda entry: entry[0] < limit, entries())  # type: ignore[method-assign]
    source.length = limit if source.length is not None else None
    return source


def _changed(path: Path) -> list[int]:
    """What differs once a file is another: size, and time of its last change."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _opened(file: str, title: str, kind: str | None = None) -> Any:
    import av

    try:
        return av.open(file, format=kind)
    except av.error.FFmpegError as error:
        what = "opened" if kind else "read as a video"
        raise DataError(f"{title}: cannot be {what} ({error.strerror})") from error


def _pictures(container: Any, title: str) -> Any:
    """The first stream of moving pictures; the cover of an audio file is none."""
    import av

    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            check_pixels(title, stream.width or 0, stream.height or 0)
            return stream
    raise DataError(f"{title}: expected a video, got a file without pictures")
