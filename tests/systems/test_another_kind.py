"""A system without depth: pairs of images, two-channel flow, judged by the end-point error."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdepth_fast.cli import main
from mdepth_fast.inference import load_trained
from mdepth_fast.systems import SYSTEMS, Config, StepInfo, System, TrainerConfig, register_system
from mdepth_fast.visualize import Cell

PRESET = """# Shifted noise.
system: tiny_flow
run: tiny_flow
protocol: epe
optimizer: {lr: 0.05, schedule: constant}
trainer: {max_epochs: 4, accelerator: cpu, devices: 1}
"""


@dataclass
class FlowData:
    count: int = 6
    batch_size: int = 2
    repeat: int = 1
    workers: int = 0
    skip_bad: bool = False


@dataclass
class FlowConfig(Config):
    data: FlowData = field(default_factory=FlowData)
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(monitor="val/epe"))
    system: str = "tiny_flow"


class EndPointError:
    def __init__(self, protocol: Any) -> None:
        self.protocol = SimpleNamespace(columns=("epe",), describe=lambda: f"protocol {protocol}: pixels")
        self.errors: list[float] = []

    def gather(self) -> "EndPointError":
        return self

    def compute(self) -> dict[str, float]:
        return {"epe": sum(self.errors) / len(self.errors)}

    def table(self) -> str:
        return f"{self.protocol.describe()}\n{self.compute()['epe']:.3f}"


class TinyFlow(System[FlowConfig]):
    name, config_class, metrics = "tiny_flow", FlowConfig, ("epe",)

    def __init__(self, config: FlowConfig) -> None:
        super().__init__(config)
        self.flow = nn.Parameter(torch.zeros(2))

    @classmethod
    def training_data(cls, config: FlowConfig) -> Any:
        flow = torch.tensor([2.0, -1.0]).view(2, 1, 1).expand(2, 8, 8)
        images = [torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(config.data.count)]
        return [{"pair": pair, "flow": flow, "name": f"pair {n}"} for n, pair in enumerate(images)]

    evaluation_data = training_data

    @classmethod
    def create(cls, config: FlowConfig, dataset: Any) -> "TinyFlow":
        return cls(config)

    @classmethod
    def restore(cls, config: FlowConfig, saved: dict[str, Any], weights: dict[str, Tensor]) -> Any:
        system = cls(config)
        system.load_state_dict(weights)
        return system

    def describe(self, samples: int) -> str:
        return f"one flow on {samples} pairs"

    def step(self, batch: dict[str, Any], info: StepInfo) -> dict[str, Tensor]:
        error = (self.flow.view(2, 1, 1) - batch["flow"]).abs().mean()
        return {"loss": error, "l1": error}

    @property
    def net(self) -> Any:
        return self

    @classmethod
    def evaluator(cls, protocol: Any) -> EndPointError:
        return EndPointError(protocol)

    @staticmethod
    def evaluate_sample(net: Any, batch: dict[str, Any], evaluator: Any) -> None:
        evaluator.errors.append((net.flow.view(2, 1, 1) - batch["flow"]).norm(dim=1).mean().item())

    def panel(self, sample: Any) -> list[Cell]:
        return [Cell("first image", sample["pair"][0].permute(1, 2, 0).numpy())]


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    path = tmp_path / "tiny_flow.yaml"
    path.write_text(PRESET)
    monkeypatch.setattr(TinyFlow, "presets", MappingProxyType({"tiny_flow": path}))
    register_system(TinyFlow)
    yield
    del SYSTEMS["tiny_flow"]


def test_flow_trains_validates_and_is_evaluated(
    registered: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "tiny_flow", f"--output={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("training one flow on 6 pairs, into ")
    before, after = (float(re.search(rf"^{row} +([\d.]+)$", out, re.MULTILINE)[1]) for row in ("before", "after"))  # type: ignore[index]
    assert before == pytest.approx(5**0.5, abs=1e-3) and after < before - 0.5
    assert "(the smallest val/epe, " in out
    folder = tmp_path / "tiny_flow" / "001"
    assert (folder / "panel.png").is_file()
    assert main(["eval", str(folder), "--checkpoint=best"]) == 0
    assert capsys.readouterr().out.splitlines() == ["protocol epe: pixels", f"{after:.3f}"]
    assert isinstance(load_trained(folder).net, TinyFlow)
