"""Whether memory, open files and threads stay flat: python benches/leaks.py [STEPS]

Trains small networks for STEPS (2,000) steps and predicts as many images, all in this process, with the engines of
`mdepth-fast train` and `predict`. A tenth of the way is warming up. Exits with 1 where resident memory grows by more
than 2 % from then to the end, or the number of files or threads. Linux only.
"""

import gc
import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback

from mdepth_fast.inference import load_trained
from mdepth_fast.inference.frames import Frame, Source, Wanted
from mdepth_fast.inference.stream import StreamOptions, predict_source

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from tiny_run import tiny_config

from mdepth_fast.training.run import train

GROWTH = 1.02
WRITERS = 2  # threads that may have a result open just then


def state() -> tuple[int, int, int]:
    """Resident bytes, open files, threads."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    counts = [len(list(Path(f"/proc/self/{name}").iterdir())) for name in ("fd", "task")]
    return pages * resource.getpagesize(), counts[0], counts[1]


class Watched:
    """`state` at the end of the warm-up, at the half and at the end."""

    def __init__(self, title: str, steps: int) -> None:
        self.title, self.at, self.states = title, (steps // 10, steps // 2, steps), list[tuple[int, int, int]]()

    def tick(self, step: int) -> None:
        if step in self.at:
            self.states.append(state())

    def flat(self) -> bool:
        for step, (memory, files, threads) in zip(self.at, self.states, strict=True):
            print(f"{self.title} {step:5}: {memory / 2**20:7.1f} MiB, {files} files, {threads} threads", flush=True)
        (first, files, threads), (last, files_last, threads_last) = self.states[0], self.states[-1]
        good = last <= GROWTH * first and files_last <= files + WRITERS and threads_last <= threads
        print(f"{self.title}: memory {last / first:.3f}x, {'flat' if good else 'NOT FLAT'}", flush=True)
        return good


class Steps(Callback):
    def __init__(self, watched: Watched) -> None:
        self.watched = watched

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        self.watched.tick(trainer.global_step)


class Images(Source):
    """The same image again and again, under new names."""

    title = "images"

    def __init__(self, watched: Watched, count: int) -> None:
        self.watched, self.length, self.keys = watched, count, {"images": None}
        self.image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)

    def entries(self) -> Iterator[tuple[int, str, float]]:
        yield from ((index, f"{index:05d}", 0.0) for index in range(self.length))

    def read(self, wanted: Wanted) -> Iterator[Frame]:
        for index, name, _ in self.entries():
            self.watched.tick(index)
            if wanted(index, name, 0.0):
                yield Frame(index, name, self.image)
        self.watched.tick(self.length)


def main() -> int:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        training, predicting = Watched("train", steps), Watched("predict", steps)
        trainer = {"max_steps": steps, "max_epochs": -1, "log_every_n_steps": 50, "checkpoint_every_n_steps": 250}
        config = tiny_config(
            output=folder,
            data__height=32,
            data__width=64,
            **{f"trainer__{key}": value for key, value in trainer.items()},
        )
        result = train(config, callbacks=[Steps(training)])
        assert result is not None
        flat = [training.flat()]
        net = load_trained(result.folder).net
        predict_source(net, Images(predicting, steps), StreamOptions(Path(folder) / "out"))
        flat.append(predicting.flat())
    return not all(flat)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
