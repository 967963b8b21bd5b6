"""A training run with tiny networks. Imported by the tests, and run as a script where a process has to be killed."""

import json
import os
import random
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning import Callback
from PIL import Image
from torch import Tensor, nn

from mdepth_fast.models import register_model
from mdepth_fast.models.base import DepthModel, DisparityModel, Kind, PoseModel
from mdepth_fast.systems import Config
from mdepth_fast.systems.monodepth2 import Monodepth2Config
from mdepth_fast.systems.supervised import SupervisedConfig
from mdepth_fast.training.run import train


def conv(inputs: int, outputs: int, stride: int, norm: bool) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs) if norm else nn.Identity(), nn.ELU()]
    return nn.Sequential(*layers)


class TinyDepth(DisparityModel):
    """Four sigmoid maps at full, 1/2, 1/4 and 1/8 size, as the real networks give."""

    def __init__(
        self,
        min_depth: float = 0.5,
        max_depth: float = 20.0,
        unit: str | None = "m",
        input_size: Any = None,
        norm: bool = True,
        scales: tuple[int, ...] = (0, 1, 2, 3),
    ) -> None:
        super().__init__(min_depth=min_depth, max_depth=max_depth, scales=scales, unit=unit, input_size=input_size)
        widths = (8, 16, 32)
        self.down = nn.ModuleList(conv(i, o, 2, norm) for i, o in zip((3, *widths), widths, strict=False))
        self.up = nn.ModuleList(conv(i, o, 1, norm) for i, o in ((32, 16), (16, 8), (8, 8)))
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 3, padding=1) for width in (8, 8, 16, 32))

    def forward(self, images: Tensor) -> list[Tensor]:
        features = [images - 0.45]
        for layer in self.down:
            features.append(layer(features[-1]))
        x = features[3]
        maps = [self.heads[3](x).sigmoid()]
        for level, layer in zip((2, 1, 0), self.up, strict=True):
            x = F.interpolate(layer(x), scale_factor=2.0)
            x = x + features[level] if level else x
            maps.append(self.heads[level](x).sigmoid())
        return [maps[3 - scale] for scale in self.scales]


class TinyPose(PoseModel):
    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.net = nn.Sequential(conv(6, 16, 4, norm), conv(16, 16, 4, norm), nn.Conv2d(16, 6, 1))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        numbers = 0.01 * self.net(torch.cat([first, second], 1)).mean((2, 3))
        return numbers[:, :3], numbers[:, 3:]


class TinyMetric(DepthModel):
    """Metres at half the size of the images, by a coarse stack and, in stage "fine", by another on top of it."""

    multiple = 8

    def __init__(self, norm: bool = True, dropout: float = 0.0, encoder_weights: str | None = None) -> None:
        super().__init__(unit="m", input_size=None)
        self.coarse = nn.Sequential(
            conv(3, 8, 2, norm), conv(8, 16, 2, norm), nn.Dropout(dropout), nn.Conv2d(16, 1, 3, 1, 1)
        )
        self.fine = nn.Sequential(conv(4, 8, 2, norm), nn.Conv2d(8, 1, 3, 1, 1))
        self.stage = "fine"

    @property
    def stage(self) -> str:
        return self._stage

    @stage.setter
    def stage(self, stage: str) -> None:
        if stage not in ("coarse", "fine"):
            raise ValueError(f"stage: expected coarse or fine, got {stage!r}")
        self._stage = stage
        self.coarse.requires_grad_(stage == "coarse")
        self.fine.requires_grad_(stage == "fine")

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        if self.stage == "coarse":
            last = [*self.coarse[3].parameters()]
            rest = [parameter for block in self.coarse[:3] for parameter in block.parameters()]
            return [{"params": rest, "lr": lr}, {"params": last, "lr": 10 * lr}]
        return [{"params": [*self.fine.parameters()], "lr": lr / 2}]

    def forward(self, images: Tensor) -> Tensor:
        centred = images - 0.45
        coarse = F.interpolate(self.coarse(centred), scale_factor=4.0 if self.stage == "fine" else 2.0)
        if self.stage == "coarse":
            return 3 + coarse
        return 3 + F.avg_pool2d(coarse, 2) + self.fine(torch.cat([centred, coarse], 1))

    def infer(self, images: Tensor) -> Tensor:
        return self(images).clamp(min=0.1)


class TinyInverse(TinyMetric):
    """Inverse depth up to scale and shift."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = None

    @property
    def kind(self) -> Kind:
        return "affine_inverse"


register_model("tiny_inverse", TinyInverse)
for suffix, with_norm in (("", True), ("_without_norm", False)):
    register_model(f"tiny_depth{suffix}", partial(TinyDepth, norm=with_norm))
    register_model(f"tiny_pose{suffix}", partial(TinyPose, norm=with_norm))
    register_model(f"tiny_metric{suffix}", partial(TinyMetric, norm=with_norm))


def write_frames(root: Path, count: int = 8, size: tuple[int, int] = (48, 64), holes: float = 0.2) -> Path:
    """A folder of `images` and `depth` (16-bit millimetres): blocks whose brightness says how near they are.

    A share `holes` of the depth is missing.
    """
    numbers = np.random.default_rng(0)
    for name in ("images", "depth"):
        (root / name).mkdir(parents=True)
    for index in range(count):
        depth = np.kron(numbers.uniform(1, 6, (size[0] // 8, size[1] // 8)), np.ones((8, 8)))
        grey = np.clip(260 - 40 * depth + numbers.normal(0, 4, size), 0, 255).astype(np.uint8)
        Image.fromarray(np.stack([grey] * 3, 2)).save(root / "images" / f"{index:03d}.png")
        millimetres = np.where(numbers.random(size) < holes, 0, 1000 * depth).astype(np.uint16)
        Image.fromarray(millimetres).save(root / "depth" / f"{index:03d}.png")
    return root


def tiny_supervised(root: Path | str, **changes: Any) -> SupervisedConfig:
    """Frames of `write_frames` for an eight-layer network, four steps an epoch."""
    values: dict[str, Any] = {
        "system": "supervised",
        "run": "tiny",
        "protocol": "nyu",
        "data": {"name": "rgbd_folder", "root": str(root), "val_split": str(root), "batch_size": 2},
        "model": {"name": "tiny_metric"},
        "augment": {"height": 32, "width": 48, "scale": (1.0, 1.2)},
        "loss": {"name": "l1"},
        "optimizer": {"name": "sgd", "lr": 1e-2, "momentum": 0.9, "schedule": "constant"},
        "trainer": {"max_epochs": 5, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1},
    }
    return changed(values, changes)


def tiny_config(**changes: Any) -> Monodepth2Config:
    """Synthetic scenes at 64x96, video and stereo sources, four steps an epoch."""
    values: dict[str, Any] = {
        "run": "tiny",
        "protocol": "synthetic",
        "data": {
            "name": "synthetic",
            "height": 64,
            "width": 96,
            "length": 8,
            "batch_size": 2,
            "sources": [-1, 1, "stereo"],
        },
        "model": {"name": "tiny_depth", "min_depth": 0.5, "max_depth": 20.0},
        "pose": {"name": "tiny_pose"},
        "optimizer": {"lr": 1e-3, "step_size": 2, "gamma": 0.5},
        "trainer": {"max_epochs": 5, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1},
    }
    return changed(values, changes)


def changed(values: dict[str, Any], changes: dict[str, Any]) -> Any:
    """The configuration of `values` under changes such as data__batch_size=4."""
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            values.setdefault(section, {})[name] = value
        else:
            values[section] = value
    return Config.from_dict(values)


class Recorder(Callback):
    """Appends the loss of every step to a file; kills the process, without farewell, after step `kill_after`."""

    def __init__(self, path: Path, kill_after: int | None) -> None:
        self.path, self.kill_after = path, kill_after

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        loss = trainer.callback_metrics["loss"].item()  # the mean over all processes
        if trainer.is_global_zero:
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, "loss": loss, "lr": rate}) + "\n")
        if step == self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)


def stop_as_killed(trainer: Any) -> None:
    """Ends a run by an error, much faster than a kill and the same for what is on the disk: nothing more is saved."""
    trainer.lightning_module.roll_back = lambda: False
    raise RuntimeError("stopped")


class Untouched(Callback):
    """Fails where a training step changes the global random numbers of torch, NumPy or Python; counts the steps."""

    def __init__(self) -> None:
        self.steps, self.before = 0, self.state()

    @staticmethod
    def state() -> list[Any]:
        # Python's and NumPy's generators as plain values: both keep their words in tuples and arrays.
        name, words, *rest = np.random.get_state()  # noqa: NPY002
        return [torch.get_rng_state().tolist(), random.getstate(), name, list(words), rest]

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.before = self.state()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert self.state() == self.before, "a training step drew from the global random numbers"
        self.steps += 1


class Validations(Callback):
    """Writes what each process logged of its validations: `path` and the rank, a line each; and <path>.ckpt."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        logged = {key: value.item() for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
        with self.path.with_name(f"{self.path.name}.{trainer.global_rank}").open("a") as file:
            file.write(json.dumps({"step": trainer.global_step, **logged}) + "\n")
        trainer.save_checkpoint(self.path.with_name(f"{self.path.name}.ckpt"))


def read_record(path: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["step"]: line for line in lines}


def spawn(record: Path, config: dict[str, Any], **options: Any) -> subprocess.CompletedProcess[str]:
    """A run in a process of its own; its processes take one thread each."""
    arguments = json.dumps({"record": str(record), "config": config, **options})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, __file__, arguments], capture_output=True, text=True, env=environment, timeout=240
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    options = json.loads(sys.argv[1])
    config = options["config"]
    train(
        tiny_supervised(**config) if "root" in config else tiny_config(**config),
        resume=options.get("resume"),
        callbacks=[
            Recorder(Path(options["record"]), options.get("kill_after")),
            Validations(Path(f"{options['record']}.val")),
        ],
    )
