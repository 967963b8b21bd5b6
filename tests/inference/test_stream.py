"""Prediction for videos, folders and shards: nothing missing, doubled or half-written, whatever happens."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mdepth_fast.data.samples import DataError, read_image
from mdepth_fast.inference import StreamOptions, open_sources, predict_source, read_map
from mdepth_fast.inference.frames import Frame
from mdepth_fast.inference.stream import Ranks
from mdepth_fast.models.base import DepthModel
from mdepth_fast.visualize import colorize

COUNT = 150  # frames of `clip`: two segments and a part of one


class Toy(DepthModel):
    """Depth that grows with the brightness of each pixel; `pause` seconds a batch."""

    def __init__(self, pause: float = 0.0) -> None:
        super().__init__(unit="m", input_size=None)
        self.weight = torch.nn.Parameter(torch.tensor(100.0))
        self.pause = pause

    def infer(self, images: Tensor) -> Tensor:
        threading.Event().wait(self.pause)
        return 1 + images.mean(1, keepdim=True) * self.weight


def write_clip(path: Path, count: int = COUNT, *, times: Any = lambda n: n, sound: bool = True, size=(64, 96)) -> Path:
    """Two greys say a frame's number; `times` in 25ths of a second; a tone as long as the frames at that rate."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"crf": "1", "preset": "ultrafast"})
        video.height, video.width, video.pix_fmt = *size, "yuv420p"
        video.codec_context.time_base = Fraction(1, 25)
        audio = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        for n in range(count):
            image = np.full((*size, 3), 50 + n // 10 * 10, np.uint8)
            image[:, :32] = 50 + n % 10 * 10
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = times(n), Fraction(1, 25)
            container.mux(video.encode(frame))
            if audio:
                tone = np.sin(np.arange(n * 640, n * 640 + 640) * 0.1).astype(np.float32)
                samples = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
                samples.sample_rate, samples.pts = 16000, n * 640
                container.mux(audio.encode(samples))
        container.mux(video.encode(None))
        if audio:
            container.mux(audio.encode(None))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


def predict(inputs: Any, output: Path, *formats: str, net: Any = None, **options: Any) -> Any:
    limit = options.pop("limit", None)
    (source,) = open_sources([str(text) for text in np.atleast_1d(inputs)], limit=limit)
    ranks = options.pop("ranks", None)
    options = {"formats": formats or ("color",), **options}
    return predict_source(net or Toy(), source, StreamOptions(output, **options), ranks=ranks)


def read_video(path: Path) -> tuple[list[np.ndarray], list[Fraction]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return [frame.to_ndarray(format="rgb24") for frame in frames], [f.pts * f.time_base for f in frames]


def sound(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def check_clip(output: Path, clip: Path, count: int = COUNT) -> None:
    """Every frame is there once, in its place: its map says which it is, and the video shows it."""
    maps = sorted((output / "clip").glob("*_depth.npy"))
    assert [path.name for path in maps] == [f"{n:06d}_depth.npy" for n in range(count)]
    depths = [np.load(path) for path in maps]
    images, expected_times = read_video(clip)
    for depth, image in zip(depths, images[:count], strict=True):
        np.testing.assert_allclose(depth, 1 + image.mean(-1) / 255 * 100, atol=1e-3)
    assert len({(depth[0, 0], depth[0, -1]) for depth in depths}) == count
    (run,) = json.loads((output / "state.json").read_text())["runs"].values()
    frames, times = read_video(output / "clip_depth.mp4")
    assert times == expected_times[:count]
    for frame, depth in zip(frames, depths, strict=True):
        assert np.abs(frame.astype(int) - colorize(depth, run["colors"])).mean() < 4


class TestClip:
    def test_rate_times_and_sound_are_kept(self, clip: Path, tmp_path: Path) -> None:
        done = predict(clip, tmp_path, "npy", "color")
        assert (done.frames, done.there, done.skipped) == (COUNT, 0, [])
        check_clip(tmp_path, clip)
        assert sound(done.video) == sound(clip)
        with av.open(str(done.video)) as container:
            assert container.streams.video[0].average_rate == 25
        assert sorted(path.name for path in tmp_path.iterdir()) == ["clip", "clip_depth.mp4", "state.json"]
        # The same again does nothing; other weights are another matter.
        changed = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
        done = predict(clip, tmp_path, "npy", "color")
        assert (done.frames, done.there) == (0, COUNT)
        assert changed == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
        net = Toy()
        torch.nn.init.constant_(net.weight, 3)
        with pytest.raises(ValueError, match="predicted with other weights; give another --output, or --overwrite"):
            predict(clip, tmp_path, "npy", "color", net=net)
        assert predict(clip, tmp_path, net=net, overwrite=True).frames == COUNT
        assert not list(tmp_path.rglob("*.npy"))

    def test_uneven_times_odd_sizes_and_a_picture_beside(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "clip.mkv", 70, times=lambda n: n + n // 7 * 3, sound=False)
        done = predict(clip, tmp_path / "out", side_by_side=True, limit=66, batch_size=5)
        frames, times = read_video(done.video)
        assert times == read_video(clip)[1][:66] and len(set(np.diff(times))) == 2
        assert frames[0].shape == (64, 192, 3)
        assert np.abs(frames[65][:, :90].astype(int) - read_video(clip)[0][65][:, :90]).mean() < 3
        # Without the limit there are more of them.
        assert predict(clip, tmp_path / "out", side_by_side=True).frames == 70
        assert len(read_video(done.video)[0]) == 70

    def test_processes_share_the_segments(self, clip: Path, tmp_path: Path) -> None:
        shares = in_ranks(2, lambda ranks: predict(clip, tmp_path, "npy", "color", ranks=ranks))
        check_clip(tmp_path, clip)
        assert [share.frames for share in shares] == [COUNT, COUNT], "said of all"

    def test_a_killed_run_goes_on(self, clip: Path, tmp_path: Path) -> None:
        after = random.SystemRandom().randrange(1, COUNT - 10)
        child = subprocess.Popen(
            [sys.executable, __file__, str(clip), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert child.stdout is not None
        for _ in range(after):
            assert child.stdout.readline() == "frame\n"
        assert child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert not (tmp_path / "clip_depth.mp4").exists()
        written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*_depth.npy") if path.name[0] != "."}
        done = predict(clip, tmp_path, "npy", "color")
        assert done.frames + done.there == COUNT
        assert done.there >= (after - 1) // 64 * 64, "at most the open segment is lost"
        assert {path: path.stat().st_mtime_ns for path in written} == written, "nothing is written twice"
        check_clip(tmp_path, clip)


def in_ranks(world: int, function: Any) -> list[Any]:
    """The results of a function in as many threads, which meet as the processes of torchrun do."""
    barrier, box, results = threading.Barrier(world), [None] * world, [None] * world

    class Rank(Ranks):
        def __init__(self, rank: int) -> None:
            self.rank, self.world = rank, world

        def first(self, act: Any) -> Any:
            return self.gather(act() if self.rank == 0 else None)[0]

        def gather(self, value: Any) -> list[Any]:
            box[self.rank] = value
            barrier.wait(60)
            values = list(box)
            barrier.wait(60)
            return values

    def body(rank: int) -> None:
        results[rank] = function(Rank(rank))

    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(7):
        Image.fromarray(np.full((32 + 32 * (n % 2), 48, 3), 10 * n, np.uint8)).save(folder / f"{n}.png")
    return folder


class TestImages:
    def test_all_formats_and_processes(self, images: Path, tmp_path: Path) -> None:
        K = np.array([[40.0, 0, 24], [0, 40, 16], [0, 0, 1]])
        formats = ("png", "npy", "tiff", "ply", "color")
        in_ranks(3, lambda ranks: predict(images, tmp_path / "out", *formats, K=K, ranks=ranks, batch_size=2))
        for n in range(7):
            for suffix in ("png", "npy", "tiff"):
                stored = read_map(tmp_path / "out" / f"{n}_depth.{suffix}")
                assert np.allclose(stored.values, 1 + 1000 * n / 255, atol=1 / 500) and stored.kind == "metric"
                np.testing.assert_array_equal(stored.K, K)
            assert (tmp_path / "out" / f"{n}_depth.ply").read_bytes().startswith(b"ply\n")
            assert Image.open(tmp_path / "out" / f"{n}_color.png").size == Image.open(images / f"{n}.png").size

    def test_what_cannot_be_read_is_left_out_and_named(self, images: Path, tmp_path: Path) -> None:
        out, good = tmp_path / "out", (images / "3.png").read_bytes()
        (images / "3.png").write_bytes(good[:60])
        done = predict(images, out)
        assert done.frames == 6 and [item.index for item in done.skipped] == [3]
        assert "3.png: cannot be read as an image" in done.skipped[0].reason
        # Later it can, another image is newer than its result, and a third result has gone.
        (images / "3.png").write_bytes(good)
        os.utime(images / "5.png", (2e9, 2e9))
        (out / "0_color.png").unlink()
        before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
        done = predict(images, out)
        assert (done.frames, done.there, done.skipped) == (3, 4, [])
        after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
        assert {name for name in after if after[name] != before.get(name)} == {
            "0_color.png",
            "3_color.png",
            "5_color.png",
        }

    def test_results_of_another_folder_are_not_taken_for_ours(self, images: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        other.mkdir()
        (other / "2.png").write_bytes((images / "1.png").read_bytes())
        predict(images, tmp_path / "out")
        with pytest.raises(ValueError, match=r"2_color.png: exists already, from another input"):
            predict(other, tmp_path / "out")

    def test_shards(self, images: Path, tmp_path: Path) -> None:
        def pack(path: Path, names: list[str]) -> Path:
            with tarfile.open(path, "w") as shard:
                for n, name in enumerate(names):
                    content = (images / f"{n}.png").read_bytes() if name.endswith("png") else b"{}"
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))
            return path

        first = pack(tmp_path / "a-0.tar", ["x/k0.png", "x/k0.json", "x/k2.png", "../k3.png", "x/k2.png"])
        pack(tmp_path / "a-1.tar", ["k0.png", "k1.png"])
        whole = (tmp_path / "a-1.tar").read_bytes()
        out = tmp_path / "out"
        (tmp_path / "a-1.tar").write_bytes(whole[:1500])
        done = predict(tmp_path / "a-*.tar", out, "npy")
        assert [path.relative_to(out).as_posix() for path in sorted(out.rglob("*.npy"))] == [
            "a-0/x/k0_depth.npy",
            "a-0/x/k2_depth.npy",
            "a-1/k0_depth.npy",
        ]
        assert [item.reason.partition(": ")[2][:30] for item in done.skipped] == [
            "../k3.png: expected a name ins",
            "x/k2.png: a second image of th",
            "cannot be read on as a tar fil",
        ]
        assert np.allclose(np.load(out / "a-0" / "x" / "k2_depth.npy"), 1 + 2000 / 255)
        with pytest.raises(ValueError, match=r"exists already, of .*a-1.tar before it was changed"):
            (tmp_path / "a-1.tar").write_bytes(whole)
            predict(tmp_path / "a-*.tar", out, "npy")
        assert predict(first, tmp_path / "in", "npy", limit=1).frames == 1


def test_photographs_stand_upright(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn clockwise to see it
    Image.fromarray(pixels).save(tmp_path / "lying.png", exif=exif)
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(tmp_path / "lying.png", "lying.png")
    for source in open_sources([str(tmp_path / "lying.png"), str(tmp_path / "shard.tar")]):
        (frame,) = source.read(lambda *entry: True)
        assert isinstance(frame, Frame) and np.array_equal(frame.image, np.rot90(pixels, -1))
    assert np.array_equal(read_image(tmp_path / "lying.png"), pixels), "a data set's as they are stored"


def test_the_white_level_of_deep_images(tmp_path):
    Image.fromarray(np.array([[0, 2048, 4095]], np.uint16)).save(tmp_path / "deep.png")
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        shard.add(tmp_path / "deep.png", "key.png")
    for source in open_sources([str(tmp_path / "deep.png"), str(tmp_path / "shard.tar")], white_level=4095):
        (frame,) = source.read(lambda *entry: True)
        assert frame.image[0, :, 0].tolist() == [0, 128, 255]


class TestBadInput:
    def fails(self, path: Path | str, match: str) -> None:
        with pytest.raises((DataError, FileNotFoundError), match=match) as caught:
            open_sources([str(path)])
        assert "\n" not in str(caught.value)

    def test_what_is_no_video(self, tmp_path: Path) -> None:
        (tmp_path / "empty.mp4").touch()
        (tmp_path / "text.mp4").write_text("no video" * 100)
        self.fails(tmp_path / "empty.mp4", "empty.mp4: cannot be read as a video")
        self.fails(tmp_path / "text.mp4", "text.mp4: cannot be read as a video")
        with av.open(str(tmp_path / "tone.m4a"), "w", format="mp4") as container:
            audio = container.add_stream("aac", rate=16000, layout="mono")
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            samples.sample_rate = 16000
            container.mux(audio.encode(samples))
            container.mux(audio.encode(None))
        self.fails(tmp_path / "tone.m4a", "tone.m4a: expected a video, got a file without pictures")
        self.fails(tmp_path / "*.mov", "no such image or folder")
        self.fails("99", r"camera 99 \(/dev/video99\): cannot be opened")

    def test_a_truncated_video_gives_what_is_there(self, clip: Path, tmp_path: Path) -> None:
        whole = tmp_path / "whole.mp4"  # with its index in front, as for the web
        with av.open(str(clip)) as source, av.open(str(whole), "w", options={"movflags": "faststart"}) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
        cut = tmp_path / "clip.mp4"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        done = predict(cut, tmp_path / "out")
        assert 1 < done.frames < COUNT and "are missing, the file is truncated" in done.skipped[-1].reason
        assert len(read_video(done.video)[0]) == done.frames
        assert predict(cut, tmp_path / "out").skipped == done.skipped, "said again, though nothing is left to do"

    def test_frames_of_another_size_end_the_video(self, tmp_path: Path) -> None:
        parts = [write_clip(tmp_path / f"{n}.ts", 80, sound=False, size=(64, 96 - 32 * n)) for n in range(2)]
        clip = tmp_path / "clip.ts"
        clip.write_bytes(b"".join(part.read_bytes() for part in parts))
        for _ in range(2):
            with pytest.raises(DataError, match=r"clip.ts: frame \d+ is 64x64, others before it are not"):
                predict(clip, tmp_path / "out")
            assert len(read_video(tmp_path / "out" / "clip_depth.mp4")[0]) in range(64, 81)
        done = predict(clip, tmp_path / "maps", "npy")
        assert {np.load(path).shape for path in (tmp_path / "maps").rglob("*.npy")} == {(64, 96), (64, 64)}
        assert done.frames > 80

    def test_an_error_in_any_thread_ends_all(self, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from mdepth_fast.inference import stream

        def full(path: Path, *rest: Any, **options: Any) -> int:
            raise OSError(28, "No space left on device", str(path))

        before = threading.active_count()
        monkeypatch.setattr(stream, "write_map", full)
        with pytest.raises(OSError, match="No space left on device"):
            predict(clip, tmp_path, "npy", "color")
        monkeypatch.undo()

        class Interrupted(Toy):
            def infer(self, images: Tensor) -> Tensor:
                if images[..., -1].mean() > 150 / 255:
                    raise KeyboardInterrupt
                return super().infer(images)

        with pytest.raises(KeyboardInterrupt):
            predict(clip, tmp_path, "npy", "color", net=Interrupted(), overwrite=True, one_range=False)
        assert threading.active_count() == before
        assert predict(clip, tmp_path, "npy", "color", overwrite=True).frames == COUNT
        check_clip(tmp_path, clip)

    def test_options_that_do_not_fit(self, images: Path, tmp_path: Path) -> None:
        for match, options in (
            ("--format: expected some of png, npy, tiff, ply, color, got exr", {"formats": ("png", "exr")}),
            ("--K: expected the camera matrix", {"formats": ("ply",)}),
            ("--temporal: expected a network of depth up to scale", {"temporal": True}),
            ("--batch-size: expected a positive number", {"batch_size": 0}),
        ):
            with pytest.raises(ValueError, match=match):
                predict(images, tmp_path / "out", **options)


if __name__ == "__main__":  # the process to be killed
    (source,) = open_sources([sys.argv[1]])
    options = StreamOptions(Path(sys.argv[2]), ("npy", "color"))
    predict_source(Toy(0.01), source, options, advance=lambda count: print("frame", flush=True))
