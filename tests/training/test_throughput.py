"""Speed of a loader: what is counted as waiting, and what as the step."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from PIL import Image

from mdepth_fast.cli import main
from mdepth_fast.data import Cached, RgbdFolder
from mdepth_fast.systems import SYSTEMS
from mdepth_fast.training import setup, throughput
from mdepth_fast.training.throughput import TimedLoader, measure_loader, measure_training

TINY = ["--model.name=tiny_depth", "--pose.name=tiny_pose", "--data.height=64", "--data.width=96", "--data.workers=0"]


class Clock:
    """Time that passes when a test says so, whatever else the machine does."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


class Slow:
    """Three batches of two an epoch, each after a pause."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds, self.epochs = clock, seconds, 0

    def __iter__(self) -> Iterator[Any]:
        self.epochs += 1
        for number in range(3):
            self.clock.sleep(self.seconds)
            yield {"target": torch.full((2, 3, 4, 4), number), "name": ["a", "b"]}


def test_waiting_and_steps_are_told_apart(clock: Clock) -> None:
    loader = Slow(clock, 0.03)
    seen: list[int] = []

    def step(batch: Any) -> None:
        seen.append(int(batch["target"][0, 0, 0, 0]))
        clock.sleep(0.01)

    speed = measure_loader(loader, 7, step)
    assert seen == [0, 1, 2, 0, 1, 2, 0, 1] and loader.epochs == 3
    assert (speed.batches, speed.images) == (7, 14)
    times = speed.first, speed.waiting, speed.seconds, speed.seconds_per_batch
    assert times == pytest.approx((0.03, 7 * 0.03, 7 * 0.04, 0.04))
    assert speed.images_per_second == pytest.approx(2 / 0.04) and speed.waiting_share == pytest.approx(0.75)
    assert measure_loader(Slow(clock, 0.03), 3).waiting_share == pytest.approx(1)
    assert measure_loader(Slow(clock, 0), 3, lambda batch: clock.sleep(0.03)).waiting_share == 0


def test_errors(clock: Clock) -> None:
    with pytest.raises(ValueError, match="batches: expected at least 1, got 0"):
        TimedLoader(Slow(clock, 0), 0)
    with pytest.raises(ValueError, match="loader: expected batches, got none"):
        measure_loader([], 3)
    assert len(TimedLoader(Slow(clock, 0), 4)) == 5


def test_steps_of_a_run() -> None:
    config = tiny_run.tiny_config()
    config.data.length = 4
    dataset = setup.training_data(config)
    assert [len(batch["target"]) for batch in setup.build_loader(config, dataset)] == [2, 2]
    speed = measure_training(config, dataset, 3)
    assert (speed.batches, speed.images) == (3, 6)
    assert 0 < speed.waiting < speed.seconds


def pairs(folder: Path, count: int = 6) -> RgbdFolder:
    for name in ("images", "depth"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        generator = np.random.default_rng(index)
        Image.fromarray(generator.integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(folder / f"images/{index}.png")
        Image.fromarray(generator.integers(0, 9000, (64, 96), dtype=np.uint16)).save(folder / f"depth/{index}.png")
    return RgbdFolder(folder / "images", folder / "depth")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cached_epoch_decodes_nothing(tmp_path: Path, workers: int) -> None:
    config = tiny_run.tiny_config(data__workers=workers)
    cached = Cached(pairs(tmp_path), tmp_path / "cache", (32, 48))
    first = [batch for batch in setup.build_loader(config, cached)]
    assert cached.ready == 6
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    again = [batch for batch in setup.build_loader(config, cached)]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one["target"], other["target"]) and torch.equal(one["depth"], other["depth"])
        assert one["target"].shape == (2, 3, 32, 48) and one["name"] == other["name"]
    assert measure_loader(setup.build_loader(config, cached), 5).images == 10


class TestCommand:
    def test_decoding_storing_cached_and_steps(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dataset = pairs(tmp_path)
        monkeypatch.setattr(SYSTEMS["monodepth2"], "training_data", lambda config: dataset)
        words = ["bench", "--loader", "motorcycle", "--batches", "4", "--steps=0", "--data.batch_size", "2"]
        assert main([*words, "--cache", str(tmp_path / "cache"), "--cache-size", "32x48"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "loader of motorcycle: 6 samples, batches of 2, 0 workers"
        for line, title in zip(lines[1:], ("decoding", "storing", "cached"), strict=True):
            assert re.fullmatch(rf"  {title} +\d+\.\d images/s +\d+\.\d ms a batch, first after \d+\.\d s", line)
        cached = Cached(dataset, tmp_path / "cache", (32, 48))
        assert cached.ready == 6
        # The configuration's own cache, full by now.
        monkeypatch.setattr(SYSTEMS["monodepth2"], "training_data", lambda config: cached)
        assert main(words) == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["loader", "decoding", "cached"]
        monkeypatch.setattr(SYSTEMS["monodepth2"], "training_data", lambda config: dataset)
        # A temporary cache goes.
        assert main(words) == 0
        assert capsys.readouterr().out.count("\n") == 4
        assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "depth", "images"]

    def test_steps(self, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["bench", "--loader", "synthetic", *TINY, "--data.length=8", "--data.batch_size=2"]
        assert main([*words, "--batches=2", "--steps=2"]) == 0
        captured = capsys.readouterr()
        lines = captured.out.splitlines()
        assert len(lines) == 3 and lines[1].startswith("  decoding ")
        assert re.fullmatch(r"  training, decoding +\d+\.\d ms a step, \d+\.\d% of it waiting", lines[2])
        assert captured.err == ""

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["synthetic", "--batches=0"], "--batches: expected at least 1, got 0"),
            (["synthetic", "--steps=-1"], "--steps: expected at least 0, got -1"),
            (["synthetic", "--cache-size=240"], "--cache-size: expected height x width like 240x320, got '240'"),
            (["synthetic", "--cache=c"], "--cache: expected a preset with measured depth, got 'synthetic'"),
            (["synthetic", "--data.batch_size=2000"], "batch_size: expected at most the 1000 samples"),
            (["nothing"], "preset: expected one of .*'nothing'"),
            (["synthetic", "--data.speed=1"], "speed"),
        ],
    )
    def test_bad_input_is_one_line(self, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["bench", "--loader", *words]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(message, line)

    def test_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        for words in (["bench", "--loader", "--help"], ["bench", "--help"]):
            with pytest.raises(SystemExit) as stop:
                main(words)
            assert stop.value.code == 0
            assert "--loader PRESET" in " ".join(capsys.readouterr().out.split())
