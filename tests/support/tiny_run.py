"""A training run with tiny networks. Imported by the tests, and run as a script where a process has to be killed."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning import Callback
from torch import Tensor, nn

from mdepth_fast.models import register_model
from mdepth_fast.models.base import DisparityModel, PoseModel
from mdepth_fast.training.config import Config
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
    ) -> None:
        super().__init__(
            min_depth=min_depth, max_depth=max_depth, scales=(0, 1, 2, 3), unit=unit, input_size=input_size
        )
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
        return maps[::-1]


class TinyPose(PoseModel):
    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.net = nn.Sequential(conv(6, 16, 4, norm), conv(16, 16, 4, norm), nn.Conv2d(16, 6, 1))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        numbers = 0.01 * self.net(torch.cat([first, second], 1)).mean((2, 3))
        return numbers[:, :3], numbers[:, 3:]


for suffix, with_norm in (("", True), ("_without_norm", False)):
    register_model(f"tiny_depth{suffix}", partial(TinyDepth, norm=with_norm))
    register_model(f"tiny_pose{suffix}", partial(TinyPose, norm=with_norm))


def tiny_config(**changes: Any) -> Config:
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


def read_record(path: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["step"]: line for line in lines}


if __name__ == "__main__":
    torch.set_num_threads(1)
    options = json.loads(sys.argv[1])
    train(
        tiny_config(**options["config"]),
        resume=options.get("resume"),
        callbacks=[Recorder(Path(options["record"]), options.get("kill_after"))],
    )
