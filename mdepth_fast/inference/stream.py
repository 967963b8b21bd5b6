"""Prediction for any number of frames in constant memory: decoding, inference and encoding side by side.

One thread decodes, the calling one predicts, others write files, and one encodes a clip's coloured video. Bounded
queues between them hold a few batches. A file appears whole or not at all, and a video is encoded in segments of
`SEGMENT` frames, so whatever a killed run has finished is there for the next one, which goes on from it.
"""

import hashlib
import json
import os
import queue
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mdepth_fast.data.intrinsics import implausible_intrinsics
from mdepth_fast.data.samples import DataError
from mdepth_fast.files import replacing
from mdepth_fast.inference.clip import SEGMENT, ClipWriter
from mdepth_fast.inference.frames import Frame, ImageFiles, Shards, Source, Unreadable
from mdepth_fast.inference.temporal import TemporalAlignment
from mdepth_fast.inference.writers import MAP_FORMATS, DepthMap, write_map
from mdepth_fast.kinds import UNITS, Kind, is_inverse
from mdepth_fast.visualize import color_pixels, color_range, colorize, valid_values, write_png

__all__ = ["FORMATS", "Predicted", "Ranks", "StreamOptions", "predict_source"]

T = TypeVar("T")
Bounds = tuple[float, float]

FORMATS = (*MAP_FORMATS, "color")

_SAMPLE = 32  # frames, at most, that the range of a clip's colours comes from
_KEPT = 4  # states of a temporal alignment; more than the queues hold, in segments


@dataclass(frozen=True)
class StreamOptions:
    """What `predict_source` writes, and how it predicts.

    Args:
        output: folder to write to.
        formats: some of `FORMATS`: the formats of `write_map`, and "color", a PNG per image or an MP4 per clip.
        scale: value of a 16-bit PNG for 1.
        one_range: one range of colours for all frames; None for a clip alone.
        side_by_side: image and colours next to each other.
        size: (H, W) of the network's input; None for that of training or of the images.
        K: camera matrix (3, 3) in pixels of the frames, or None.
        temporal: align each frame to the frames before it, see `TemporalAlignment`.
        batch_size: frames of one size at a time.
        half: half precision, float16 on a GPU, bfloat16 on a CPU.
        writers: threads that write files.
        overwrite: replace what another run, or a finished one, has written.
    """

    output: Path
    formats: tuple[str, ...] = ("png", "color")
    scale: float = 256.0
    one_range: bool | None = None
    side_by_side: bool = False
    size: tuple[int, int] | None = None
    K: NDArray[np.float64] | None = None
    temporal: bool = False
    batch_size: int = 1
    half: bool = False
    writers: int = 2
    overwrite: bool = False

    def __post_init__(self) -> None:
        if unknown := [name for name in self.formats if name not in FORMATS] or not self.formats:
            got = unknown[0] if isinstance(unknown, list) else "none"
            raise ValueError(f"--format: expected some of {', '.join(FORMATS)}, got {got}")
        for name, value, low in (("--batch-size", self.batch_size, 1), ("--scale", self.scale, 0)):
            if not (value > 0 and low <= value < float("inf")):
                raise ValueError(f"{name}: expected a positive number, got {value}")
        if "ply" in self.formats and self.K is None:
            raise ValueError("--K: expected the camera matrix, which the point clouds of --format ply need, got none")


@dataclass
class Predicted:
    """What `predict_source` has done, in all processes.

    frames: predicted now. there: finished before. skipped: could not be read. clamped: pixels of 16-bit PNG. video: the
    coloured clip. busy, wall: seconds of inference, and in all, of this process. notes: what to tell the user.
    """

    kind: Kind
    unit: str | None
    frames: int = 0
    there: int = 0
    skipped: list[Unreadable] = field(default_factory=list)
    clamped: int = 0
    video: Path | None = None
    busy: float = 0.0
    wall: float = 0.0
    notes: list[str] = field(default_factory=list)


class Ranks:
    """The processes that share the work under `torchrun`; alone without it."""

    def __init__(self) -> None:
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self.world > 1:
            # They meet once a source is done, however much sooner one of them is.
            torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))

    def first(self, function: Callable[[], T]) -> T:
        """The result of a function that the first process alone calls; its error ends all."""
        if self.world == 1:
            return function()
        box: list[Any] = [None]
        error: Exception | None = None
        if self.rank == 0:
            try:
                box = [(function(),)]
            except Exception as raised:
                error = raised
        torch.distributed.broadcast_object_list(box)
        if error is not None:
            raise error
        if box[0] is None:
            raise SystemExit(1)  # the first process says why
        result: T = box[0][0]
        return result

    def gather(self, value: T) -> list[T]:
        """The values of all processes."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values

    def close(self) -> None:
        if self.world > 1:
            torch.distributed.destroy_process_group()


def predict_source(
    net: Any,
    source: Source,
    options: StreamOptions,
    *,
    ranks: Ranks | None = None,
    advance: Callable[[int], Any] = lambda count: None,
) -> Predicted:
    """Predicts all frames of a source and writes them to files.

    Images give `<name>_depth.<format>` and `<name>_color.png`. A clip gives `<clip>_depth.mp4`, with the times and the
    sound of its source, and its frames' maps in a folder of its name. What an earlier run with the same weights and
    settings has finished stays as it is; `state.json` in the output folder says which those were. What cannot be read
    is left out and reported.

    Args:
        net: a `DepthModel` on its device.
        advance: told how many frames are done, from any thread.

    Raises:
        ValueError: the folder holds predictions of another run, or the options do not suit network or source.
        DataError: a clip ends with an error, or none of the frames can be read. What came before is finished.
    """
    return _Run(net, source, options, ranks or Ranks(), advance).run()


class _Stopped(Exception):
    """Another thread has failed, or the run is interrupted."""


class _Belt:
    """A bounded queue between threads, which gives up once the run has stopped."""

    def __init__(self, size: int, *stop: threading.Event) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(size)
        self._stop = stop

    def put(self, item: Any) -> None:
        while not any(event.is_set() for event in self._stop):
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                pass
        raise _Stopped

    def get(self) -> Any:
        while not any(event.is_set() for event in self._stop):
            try:
                return self._queue.get(timeout=0.1)
            except queue.Empty:
                pass
        raise _Stopped


class _Threads:
    """The threads of a run. The first error in any of them stops all, and `check` raises it."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._all: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def start(self, function: Callable[[], None]) -> None:
        def body() -> None:
            try:
                function()
            except _Stopped:
                pass
            except BaseException as error:
                with self._lock:
                    self._error = self._error or error
                self.stop.set()

        self._all.append(threading.Thread(target=body, daemon=True))
        self._all[-1].start()

    def join(self) -> None:
        for thread in self._all:
            thread.join()

    def check(self) -> None:
        if self._error is not None:
            raise self._error


class _Files:
    """The files of single frames, in any number of threads."""

    def __init__(self, folder: Path, formats: tuple[str, ...], options: StreamOptions, bounds: Bounds | None) -> None:
        self.folder, self.formats, self.options, self.bounds = folder, formats, options, bounds
        self.clamped = 0
        self._lock = threading.Lock()

    def paths(self, name: str) -> dict[str, Path]:
        return {
            kind: self.folder / (f"{name}_color.png" if kind == "color" else f"{name}_depth.{kind}")
            for kind in self.formats
        }

    def missing(self, name: str, changed: float) -> bool:
        """Whether a file of a frame is not there, or older than the image."""
        for path in self.paths(name).values():
            try:
                if path.stat().st_mtime < changed:
                    return True
            except FileNotFoundError:
                return True
        return False

    def write(self, frame: Frame, map: DepthMap) -> None:
        for kind, path in self.paths(frame.name).items():
            try:
                clamped = self._write(kind, path, frame, map)
            except OSError as error:
                raise OSError(f"{path}: cannot be written ({error})") from error
            if clamped:
                with self._lock:
                    self.clamped += clamped

    def _write(self, kind: str, path: Path, frame: Frame, map: DepthMap) -> int:
        if kind != "color":
            return write_map(path, map, format=kind, scale=self.options.scale)
        colors = colorize(map.values, self.bounds, kind=map.kind)
        write_png(path, np.hstack([frame.image, colors]) if self.options.side_by_side else colors)
        return 0


class _State:
    """`state.json`: what runs into a folder have read, with which weights and settings, so that one can go on."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "state.json"
        self.runs: dict[str, Any] = {}
        if self.path.exists():
            try:
                self.runs = json.loads(self.path.read_text())["runs"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(f"{self.path}: cannot be read as the state of earlier runs ({error})") from error

    def write(self) -> None:
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps({"runs": self.runs}, indent=1) + "\n")


_OUR_FILES = re.compile(r".+_(depth\.(png|npy|npy\.json|tiff|ply)|color\.png)")
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.\w+")  # of `replacing`, left by a killed process


class _Run:
    def __init__(
        self, net: Any, source: Source, options: StreamOptions, ranks: Ranks, advance: Callable[[int], Any]
    ) -> None:
        self.net, self.source, self.options, self.ranks, self.advance = net, source, options, ranks, advance
        self.device = next(net.parameters()).device
        self.result = Predicted(net.kind, UNITS[net.kind])
        self._camera_checked = False
        self.intrinsics = (
            torch.from_numpy(options.K).float().to(self.device)
            if options.K is not None and net.takes_intrinsics
            else None
        )
        output = options.output
        self.folder = output / source.name
        self.parts = output / ".parts" / (source.name or "images")
        self.final = output / f"{source.name}_depth.mp4" if source.clip and "color" in options.formats else None
        if ranks.world > 1 and (source.live or options.temporal):
            what = "--temporal" if options.temporal else source.title
            raise ValueError(f"{what}: expected one process, each frame follows the one before; got {ranks.world}")
        if "ply" in options.formats and is_inverse(net.kind):
            raise ValueError(f"--format: expected depth for ply, this network predicts {net.kind}")
        self.align = TemporalAlignment(net.kind) if options.temporal else None
        if self.align and not source.live:
            source.entries()  # an error where frames have no order in time

    def run(self) -> Predicted:
        began = time.monotonic()
        bounds, finished = self.ranks.first(self._begin)
        formats = tuple(name for name in self.options.formats if not (self.final and name == "color"))
        self.files = _Files(self.folder, formats, self.options, bounds) if formats else None
        self.clip = None
        if self.final and not finished:
            frugal = self.device.type == "cpu"
            self.clip = ClipWriter(self.source, self.parts, self._picture(bounds), frugal=frugal)
        error: BaseException | None = None
        try:
            self._pump()
        except (DataError, KeyboardInterrupt) as raised:
            if isinstance(raised, KeyboardInterrupt) and not self.source.live:
                raise
            error = raised
        self._end(error)
        self.result.wall = time.monotonic() - began
        return self.result

    # Before the frames: what is there already, and the colours.

    def _begin(self) -> tuple[Bounds | None, bool]:
        """The range of the colours, and whether the clip's video is finished."""
        options, output, keys = self.options, self.options.output, self.source.keys
        output.mkdir(parents=True, exist_ok=True)
        state = _State(output)
        settings = {
            "weights": _fingerprint(self.net),
            "scale": options.scale,
            "range": "clip" if self._one_range else "frame",
            "side_by_side": options.side_by_side,
            "size": options.size and list(options.size),
            "K": None if options.K is None else options.K.tolist(),
            "temporal": options.temporal,
            "half": options.half,
        }
        old = {key: state.runs.get(key) for key in keys}
        runs = [run for run in old.values() if run]
        same = all(run and run["settings"] == settings and run["file"] == keys[key] for key, run in old.items())
        if self.source.live or not same or (options.overwrite and all(run["finished"] for run in runs)):
            for path in self._existing():
                if not options.overwrite:
                    raise ValueError(
                        f"{path}: exists already, {_reason(settings, keys, old)}; give another --output, or --overwrite"
                    )
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            old = dict.fromkeys(keys)
        for folder in {output, self.folder, self.parts}:
            for path in folder.glob(".*"):
                # Another process may be about to rename a young one.
                if _TEMPORARY.fullmatch(path.name) and path.stat().st_mtime < time.time() - 60:
                    path.unlink()
        runs = [run for run in old.values() if run]
        if any(run["frames"] != self.source.length for run in runs):
            shutil.rmtree(self.parts, ignore_errors=True)  # the last segment may be too short
            finished = False
        else:
            finished = len(runs) == len(old) and all(run["finished"] for run in runs)
        finished = bool(finished and self.final and self.final.exists())
        bounds: Bounds | None = next((tuple(run["colors"]) for run in runs if run["colors"]), None)
        if bounds is None and self._one_range and "color" in options.formats and not self.source.live:
            bounds = self._sampled_range()
        skipped = [item for run in runs for item in run["skipped"]] if finished else []
        self.result.skipped += [Unreadable(*item) for item in skipped]
        run = {
            "settings": settings,
            "frames": self.source.length,
            "colors": bounds,
            "finished": finished,
            "skipped": skipped,
        }
        state.runs |= {key: {**run, "file": changed} for key, changed in keys.items()}
        state.write()
        if finished:
            shutil.rmtree(self.parts, ignore_errors=True)
        self.result.busy = 0.0  # of the sample
        return bounds, finished

    @property
    def _one_range(self) -> bool:
        return self.source.clip if self.options.one_range is None else self.options.one_range

    def _existing(self) -> Iterator[Path]:
        """What a run over this source would write and is there."""
        if isinstance(self.source, ImageFiles):
            names = {path.name for path in self.options.output.iterdir()}
            for path in self.source.paths:
                for ending in (*(f"depth.{kind}" for kind in (*MAP_FORMATS, "npy.json")), "color.png"):
                    if (name := f"{path.stem}_{ending}") in names:
                        yield self.options.output / name
        else:
            stems = self.source.names if isinstance(self.source, Shards) else [self.source.name]
            for stem in stems:
                found = (self.options.output / stem).rglob("*_*")
                yield from (path for path in sorted(found) if _OUR_FILES.fullmatch(path.name))
                final = self.options.output / f"{stem}_depth.mp4"
                yield from [final] if final.exists() else []
        yield from [self.parts] if self.parts.exists() else []

    def _sampled_range(self) -> Bounds:
        """Minimum and 95th percentile of the inverse depth, as `color_range`, over a sample of the frames."""
        length = self.source.length
        count = _SAMPLE if length is None else min(_SAMPLE, max(8, length // 32))
        align = TemporalAlignment(self.net.kind) if self.align else None
        pooled: list[NDArray[np.float32]] = []
        with suppress(DataError):  # which comes again, after the frames before it
            for frame in self.source.sample(count):
                values = self._predict([frame.image], align)[0]
                values = values[:: max(values.shape[0] // 120, 1), :: max(values.shape[1] // 160, 1)]
                pooled.append(values[valid_values(values, self.net.kind)])
        found = np.concatenate(pooled) if pooled else np.empty(0, np.float32)
        return color_range(found[None] if found.size else np.full((1, 1), np.nan), kind=self.net.kind)

    def _picture(self, bounds: Bounds | None) -> Callable[[Frame, DepthMap], NDArray[np.uint8]]:
        """Makes the coloured picture (H, W, 4) of a clip's frame. Without bounds the range is a mean over time."""
        running = bounds

        def picture(frame: Frame, map: DepthMap) -> NDArray[np.uint8]:
            nonlocal running
            if bounds is None:
                own = color_range(map.values[::4, ::4], kind=map.kind)
                if self._one_range and running is not None:
                    own = (0.95 * running[0] + 0.05 * own[0], 0.95 * running[1] + 0.05 * own[1])
                running = own
            colors = color_pixels(map.values, running, kind=map.kind)
            if self.options.side_by_side:
                image = np.pad(frame.image, ((0, 0), (0, 0), (0, 1)))
                colors = np.hstack([image, colors])
            return colors

        return picture

    # The frames.

    def _mine(self, index: int) -> bool:
        """Whether a frame is this process's: every n-th image, or a range of a clip's segments."""
        rank, world = self.ranks.rank, self.ranks.world
        if not self.source.clip or self.source.length is None:
            return index % world == rank
        segments = -(-self.source.length // SEGMENT)
        return segments * rank // world <= min(index // SEGMENT, segments - 1) < segments * (rank + 1) // world

    def _missing(self, index: int, name: str, changed: float) -> bool:
        return bool((self.clip and not self.clip.has(index)) or (self.files and self.files.missing(name, changed)))

    def _wanted(self, index: int, name: str, changed: float) -> bool:
        if not self._mine(index):
            return False
        if self._missing(index, name, changed):
            return True
        self.result.there += 1
        self.advance(1)
        return False

    def _pump(self) -> None:
        """Decodes, predicts and writes until the source ends; a `DataError` of the source comes after the rest."""
        options, wanted = self.options, self._wanted
        if self.align and not self.source.live:
            start = self._resume_alignment()
            if start is None:
                return

            def wanted(index: int, name: str, changed: float) -> bool:
                return index >= start

        threads, reading_ends = _Threads(), threading.Event()
        decoded = _Belt(2 * options.batch_size, threads.stop, reading_ends)
        to_files, to_clip = _Belt(2 * options.writers, threads.stop), _Belt(4, threads.stop)

        def decode() -> None:
            end: DataError | None = None
            try:
                with closing(self.source.read(wanted)) as frames:  # type: ignore[type-var]
                    for frame in frames:
                        decoded.put(frame)
            except DataError as error:
                end = error
            decoded.put(end)

        def write_files() -> None:
            while (item := to_files.get()) is not None:
                assert self.files is not None
                self.files.write(*item)
                if not self.clip:
                    self.advance(1)

        def write_clip() -> None:
            assert self.clip is not None
            while (item := to_clip.get()) is not None:
                self.clip.write(*item)
                self.advance(1)
            self.clip.close()

        file_writers = options.writers if self.files else 0
        end: BaseException | None = None
        try:
            for function in (decode, *[write_files] * file_writers, *[write_clip] * bool(self.clip)):
                threads.start(function)
            try:
                for batch in self._batches(decoded):
                    for frame, map in self._maps(batch):
                        file_missing = self.files and self.files.missing(frame.name, frame.changed)
                        clip_missing = self.clip and not self.clip.has(frame.index)
                        self.result.frames += bool(file_missing or clip_missing)
                        if file_missing:
                            to_files.put((frame, map))
                        if clip_missing:
                            to_clip.put((frame, map))
            except DataError as error:
                end = error
            except KeyboardInterrupt as error:
                if not self.source.live:
                    raise
                end = error  # the way to end a recording
            reading_ends.set()
            for _ in range(file_writers):
                to_files.put(None)
            if self.clip:
                to_clip.put(None)
            threads.join()
        except _Stopped:
            pass  # `check` says why
        finally:
            threads.stop.set()
            threads.join()
            if self.clip:
                self.clip.abort()
        threads.check()
        if end is not None:
            raise end

    def _batches(self, decoded: _Belt) -> Iterator[list[Frame]]:
        """Frames of one size at a time. What ends the source too early is raised after the last of them."""
        batch: list[Frame] = []
        while True:
            item = decoded.get()
            if isinstance(item, Unreadable):
                self.result.skipped.append(item)
                self.advance(1)
                continue
            if isinstance(item, Frame):
                height, width = item.image.shape[:2]
                if self.clip and not self.clip.fits(height, width * (1 + self.options.side_by_side)):
                    item = DataError(
                        f"{self.source.title}: frame {item.index} is {width}x{height}, others before it are not, and a "
                        "video has one size; what came before is finished, and --format without color writes a file "
                        "per frame"
                    )
                elif batch and item.image.shape != batch[0].image.shape:
                    yield batch
                    batch = []
            if not isinstance(item, Frame):
                if batch:
                    yield batch
                if item is not None:
                    raise item
                return
            batch.append(item)
            if len(batch) == self.options.batch_size:
                yield batch
                batch = []

    def _maps(self, batch: list[Frame]) -> Iterator[tuple[Frame, DepthMap]]:
        if self.options.K is not None and not self._camera_checked:
            self._camera_checked = True
            height, width = batch[0].image.shape[:2]
            if problem := implausible_intrinsics(self.options.K, height, width):
                self.result.notes.append(f"--K: {problem}")
        if self.align and not self.source.live:
            self._store_alignment(batch[0].index)
        for frame, values in zip(batch, self._predict([frame.image for frame in batch], self.align)):
            if np.isnan(values).any():
                raise ValueError(f"{frame.name}: the network predicts NaN; its weights or their precision are no good")
            yield frame, DepthMap(values, self.result.kind, self.result.unit, self.options.K, frame.image)

    @torch.inference_mode()
    def _predict(self, images: list[Any], align: TemporalAlignment | None) -> list[NDArray[np.float32]]:
        """The maps (H, W) of images of one size, on the host."""
        began = time.monotonic()
        batch = torch.from_numpy(np.stack(images)).to(self.device).permute(0, 3, 1, 2).contiguous().float().div_(255)
        options: dict[str, Any] = {} if self.intrinsics is None else {"K": self.intrinsics}
        half = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        with torch.autocast(self.device.type, half, enabled=self.options.half):
            maps = self.net.predict(batch, size=self.options.size, **options).depth.float()
        if align:
            maps = torch.stack([align(values) for values in maps])
        found = list(maps[:, 0].cpu().numpy())
        self.result.busy += time.monotonic() - began
        return found

    # A temporal alignment goes on from its state before some frame, stored once a segment.

    def _resume_alignment(self) -> int | None:
        """The frame to begin at, None if nothing is left to do."""
        assert self.align is not None
        first = None
        for entry in self.source.entries():
            if self._wanted(*entry) and first is None:
                first = entry[0]
        if first is None:
            return None
        stored = [path for path in self._alignments() if int(path.stem) <= first]
        if not stored:
            return 0
        with np.load(stored[-1]) as state:
            self.align.restore(dict(state), self.device)
        return int(stored[-1].stem)

    def _store_alignment(self, index: int) -> None:
        assert self.align is not None
        stored = self._alignments()
        if index and (not stored or index // SEGMENT > int(stored[-1].stem) // SEGMENT):
            with replacing(self.parts / f"{index:09d}.npz") as temporary, temporary.open("wb") as file:
                np.savez(file, **self.align.state())
            for path in stored[: 1 - _KEPT]:
                path.unlink()

    def _alignments(self) -> list[Path]:
        return sorted(self.parts.glob("[0-9]*.npz"))

    # After the frames.

    def _end(self, error: BaseException | None) -> None:
        """Joins what the processes have done; raises what ended the source too early."""
        result = self.result
        result.clamped = self.files.clamped if self.files else 0
        shares = self.ranks.gather((replace(result), error))
        result.frames = sum(share.frames for share, _ in shares)
        result.there = sum(share.there for share, _ in shares)
        result.clamped = sum(share.clamped for share, _ in shares)
        result.skipped = [item for share, _ in shares for item in share.skipped]
        error = next((error for _, error in shares if error is not None), None)
        if not result.frames and not result.there and result.skipped and error is None:
            error = DataError(result.skipped[0].reason)
        self.ranks.first(lambda: self._complete(error))
        result.video = self.final
        if error is not None:
            raise error

    def _complete(self, error: BaseException | None) -> None:
        if self.clip and (self.result.frames or self.result.there):
            assert self.final is not None
            self.clip.join(self.final)
        if error is not None and not self.source.live:
            return
        state = _State(self.options.output)
        for key in self.source.keys:
            run = state.runs[key]
            run["finished"] = True
            if self.source.clip:
                run["skipped"] = [[item.index, item.name, item.reason] for item in self.result.skipped[:100]]
        state.write()
        shutil.rmtree(self.parts, ignore_errors=True)
        with suppress(OSError):
            self.parts.parent.rmdir()


def _fingerprint(net: Any) -> str:
    """Tells networks of different weights or options apart."""
    digest = hashlib.blake2b(repr((type(net).__name__, net.created_as, net.kind)).encode(), digest_size=12)
    for name, value in net.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _reason(settings: dict[str, Any], keys: dict[str, Any], old: dict[str, Any]) -> str:
    """How an earlier run over the same input differs."""
    for key, run in old.items():
        if run is None:
            continue
        for name, value in settings.items():
            if run["settings"].get(name) != value:
                if name == "weights":
                    return "predicted with other weights"
                return f"predicted with --{name.replace('_', '-')} {run['settings'].get(name)}, not {value}"
        if run["file"] != keys[key]:
            return f"of {key} before it was changed"
    return "from another input"
