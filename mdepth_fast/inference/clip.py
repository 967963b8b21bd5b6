"""The coloured video of a clip, encoded in segments that survive a crash and joined without encoding again."""

import heapq
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdepth_fast.data.samples import DataError
from mdepth_fast.files import replacing
from mdepth_fast.inference.frames import Frame, Source, VideoFile
from mdepth_fast.inference.writers import DepthMap

__all__ = ["SEGMENT", "ClipWriter"]

SEGMENT = 64
"""Frames of a segment. A run that is killed loses less than one segment."""


class ClipWriter:
    """Encodes the coloured frames of a clip.

    Segment n holds the frames from `SEGMENT * n` on; its file appears when it is complete and says in its name when it
    begins, in units of the source's `time_base`. H.264 where PyAV has libx264, else MPEG-4.

    Args:
        source: gives times and sound.
        folder: of the segments.
        picture: the coloured image of a frame and its map, uint8 (H, W, 4) as `visualize.color_pixels` makes it.
        frugal: the encoder shares the processor with the network: one thread, and larger files for less work.
    """

    def __init__(
        self,
        source: Source,
        folder: Path,
        picture: Callable[[Frame, DepthMap], NDArray[np.uint8]],
        *,
        frugal: bool = False,
    ) -> None:
        self.source, self.folder, self.picture, self.frugal = source, folder, picture, frugal
        folder.mkdir(parents=True, exist_ok=True)
        self._done = self._segments()
        self._frame_size: tuple[int, int] | None = None
        self._number = -1
        self._open: ExitStack | None = None
        self._container: Any = None
        self._stream: Any = None
        self._start = self._last = 0

    def has(self, index: int) -> bool:
        """Whether a frame's segment is complete."""
        return index // SEGMENT in self._done

    def write(self, frame: Frame, map: DepthMap) -> None:
        """Encodes the next frame."""
        import av

        image = _even(self.picture(frame, map))
        number = frame.index // SEGMENT
        if number != self._number or self._open is None:
            self.close()
            self._begin(number, frame.pts, image.shape[0], image.shape[1])
        picture = av.VideoFrame.from_ndarray(image, format="rgba")
        time = frame.pts - self._start
        if self._source_base != self._base:
            time = round(time * self._source_base / self._base)
        picture.pts = self._last = max(time, self._last + 1)
        picture.time_base = self._base
        self._container.mux(self._stream.encode(picture))

    def fits(self, height: int, width: int) -> bool:
        """Whether a picture is of the size of those before it."""
        size = (width + width % 2, height + height % 2)
        if self._frame_size is None:
            self._frame_size = next((_size(path) for path in self._done.values()), size)
        return size == self._frame_size

    def close(self) -> None:
        """Completes the open segment."""
        if self._open is None:
            return
        self._container.mux(self._stream.encode(None))
        stack, self._open = self._open, None
        with stack:
            self._container.close()
        self._done = self._done | {self._number: self._path}

    def abort(self) -> None:
        """Leaves the open segment out."""
        if self._open is None:
            return
        stack, self._open = self._open, None
        with suppress(_Aborted), stack:
            with suppress(Exception):  # a full disk, which is why
                self._container.close()
            raise _Aborted

    def join(self, path: Path) -> None:
        """Copies the segments one after the other, and the sound of the source, into one file.

        `DataError` if there is none, or segments are of different sizes.
        """
        parts = [self._segments()[number] for number in sorted(self._segments())]
        if not parts:
            raise DataError(f"{self.source.title}: none of its frames can be decoded")
        _join(parts, self.source, path)

    def _segments(self) -> dict[int, Path]:
        return {int(path.name.partition("@")[0]): path for path in self.folder.glob("[0-9]*@*.mp4")}

    def _begin(self, number: int, pts: int, height: int, width: int) -> None:
        import av

        self._number, self._start, self._last = number, pts, -1
        self._path = self.folder / f"{number:06d}@{pts}.mp4"
        stack = ExitStack()
        temporary = stack.enter_context(replacing(self._path))
        self._container = av.open(str(temporary), "w", format="mp4")
        self._open = stack
        codec = _encoder()
        self._stream = stream = self._container.add_stream(codec, rate=self.source.rate)
        self._source_base = base = self.source.time_base
        # MPEG-4 counts time in 16 bits.
        self._base = base if codec != "mpeg4" or base.denominator < 65536 else Fraction(1, 60000)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = self._base
        stream.codec_context.thread_count = 1 if self.frugal else 0
        # No frame refers to a later one, so decoding and showing have one order and segments can be joined.
        stream.codec_context.max_b_frames = 0
        if codec == "libx264":
            stream.options = {"preset": "ultrafast" if self.frugal else "veryfast", "crf": "18", "bf": "0"}
        else:
            stream.codec_context.bit_rate = 4 * width * height


class _Aborted(Exception):
    pass


def _encoder() -> str:
    import av

    for name in ("libx264", "mpeg4"):
        with suppress(ValueError):
            return str(av.codec.Codec(name, "w").name)
    raise ValueError("av: expected a PyAV that encodes H.264 or MPEG-4, got one that does neither")


def _even(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """With the last row or column doubled where their number is odd: video halves the resolution of colours."""
    height, width = image.shape[0] % 2, image.shape[1] % 2
    return np.pad(image, ((0, height), (0, width), (0, 0)), mode="edge") if height or width else image


def _join(parts: list[Path], source: Source, path: Path) -> None:
    import av

    sizes = [_size(part) for part in parts]
    if other := next((number for number, size in enumerate(sizes) if size != sizes[0]), None):
        raise DataError(
            f"{source.title}: expected frames of one size, {sizes[0][0]}x{sizes[0][1]}, got {sizes[other][0]}x"
            f"{sizes[other][1]} from frame {int(parts[other].name.partition('@')[0]) * SEGMENT} on; without --format "
            "color each frame is a file of its own"
        )
    with replacing(path) as temporary, ExitStack() as stack:
        output = stack.enter_context(av.open(str(temporary), "w", format="mp4"))
        with av.open(str(parts[0])) as first:
            stream = _like(output, first.streams.video[0])
        stream.time_base = source.time_base
        packets = [_pictures(parts, source, stream)]
        if isinstance(source, VideoFile):
            original = stack.enter_context(av.open(str(source.path)))
            if original.streams.audio:
                audio = original.streams.audio[0]
                if audio.codec_context.name in output.supported_codecs:
                    packets.append(_sound(original, audio, _like(output, audio), _end(parts[-1], source)))
        # The file is written in the order of time: a muxer keeps what comes too early in memory.
        for _, packet in heapq.merge(*packets, key=lambda item: item[0]):
            output.mux(packet)


def _size(part: Path) -> tuple[int, int]:
    import av

    with av.open(str(part)) as container:
        stream = container.streams.video[0]
        return stream.width, stream.height


def _like(output: Any, stream: Any) -> Any:
    if hasattr(output, "add_stream_from_template"):
        return output.add_stream_from_template(stream)
    return output.add_stream(template=stream)  # PyAV before 14


def _pictures(parts: list[Path], source: Source, stream: Any) -> Iterator[tuple[Fraction, Any]]:
    """The packets of all segments with their times in seconds; each lasts until the next."""
    import av

    def packets() -> Iterator[tuple[Fraction, Any]]:
        for part in parts:
            start = int(part.stem.partition("@")[2]) * source.time_base
            with av.open(str(part)) as container:
                for packet in container.demux(video=0):
                    if packet.size:
                        yield start + packet.pts * Fraction(packet.time_base), packet

    def placed(time: Fraction, end: Fraction, packet: Any) -> tuple[Fraction, Any]:
        packet.stream = stream
        packet.time_base = source.time_base
        packet.pts = packet.dts = round(time / source.time_base)
        packet.duration = max(round(end / source.time_base) - packet.pts, 1)
        return time, packet

    held: tuple[Fraction, Any] | None = None
    for time, packet in packets():
        if held is not None:
            yield placed(held[0], time, held[1])
        held = (time, packet)
    if held is not None:
        yield placed(held[0], held[0] + 1 / source.rate, held[1])


def _end(last: Path, source: VideoFile) -> Fraction | None:
    """Where the sound is to end, in seconds: None if the pictures go on to the end of the file."""
    import av

    number, _, pts = last.stem.partition("@")
    if source.length == source.frames and int(number) == (source.frames - 1) // SEGMENT:
        return None
    with av.open(str(last)) as container:
        stream = container.streams.video[0]
        return int(pts) * source.time_base + Fraction(stream.duration or 0) * Fraction(stream.time_base)


def _sound(original: Any, audio: Any, stream: Any, end: Fraction | None) -> Iterator[tuple[Fraction, Any]]:
    for packet in original.demux(audio):
        if packet.size and packet.dts is not None:
            time = packet.dts * Fraction(packet.time_base)
            if end is not None and time >= end:
                return
            packet.stream = stream
            yield time, packet
