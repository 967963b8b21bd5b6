"""A whole training step, and a whole training run."""

import re
import subprocess
import sys
import time

import pytest

from mdepth_fast.bench.step import SIZE, steps


def test_training_step(in_turn, device):
    """This package against the same networks and loss as they are usually written, both eager."""
    pair = steps(device)
    first, expected = pair["mdepth_fast"](), pair["eager"]()  # the same weights, so the same loss
    assert abs(first - expected) < 1e-4 * expected
    title = "a training step of Monodepth2, ResNet-18 depth and pose"
    in_turn("training_step", "x".join(map(str, SIZE)), pair, title=title)


def test_motorcycle(benchmark, full, save, tmp_path):
    """The README's first command, with its error against the ground truth of the pair it was trained on."""
    if not full:
        pytest.skip("takes minutes: --full runs it")
    words = ["train", "motorcycle"]

    def run():
        started = time.perf_counter()
        command = [sys.executable, "-m", "mdepth_fast", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return time.perf_counter() - started, done.stdout

    wall, output = benchmark.pedantic(run, rounds=1)
    seconds = float(re.search(r"^finished in (\d+) s$", output, re.MULTILINE)[1])
    metrics = read_metrics(output)
    print(f"\n{' '.join(words)}: {seconds:.0f} s of training, {wall:.0f} s in all, {metrics}")
    command = " ".join(["mdepth-fast", *words])
    save("train_motorcycle", "1 pair", command=command, seconds=seconds, wall_seconds=wall, metrics=metrics)


def read_metrics(output):
    """What the table says after training, by column."""
    titles, numbers = re.search(r"^( +abs_rel .*)\n(?:before .*\n)?after +(.*)$", output, re.MULTILINE).groups()
    return dict(zip(titles.split(), map(float, numbers.split()), strict=True))
