"""A system of one's own: L1 between the warped sources and the target, and one speed for all of the video."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from mdepth_fast.ops import disparity_to_depth, edge_aware_smoothness, inverse_warp
from mdepth_fast.systems import Objective, Outputs, SelfSupervisedSystem, Views, ViewsConfig, register_system


@dataclass
class ToyLoss:
    smoothness: float = 0.1


@dataclass
class ToyConfig(ViewsConfig):
    loss: ToyLoss = field(default_factory=ToyLoss)
    system: str = "toy"


class StraightAhead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.speed = nn.Parameter(torch.tensor(0.1))

    def forward(self, views: Views, disparities: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        T = torch.eye(4).repeat(*views.T.shape[:2], 1, 1)
        T[..., 2, 3] = -self.speed * torch.tensor(views.offsets)
        return T, {}


class L1(Objective):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config, self.limits = config, {"min_depth": config.model.min_depth, "max_depth": config.model.max_depth}

    def forward(self, views: Views, outputs: Outputs) -> dict[str, Tensor]:
        (disparity, *_), sources, T = outputs.disparities, range(len(views.offsets)), outputs.transforms
        depth = disparity_to_depth(disparity, **self.limits)
        warped = [inverse_warp(views.sources[:, s], depth, views.K, T[:, s])[0] for s in sources]
        l1 = torch.stack([(image - views.target).abs().mean() for image in warped]).mean()
        smoothness = edge_aware_smoothness(disparity, views.target)
        return {"loss": l1 + self.config.loss.smoothness * smoothness, "l1": l1, "smoothness": smoothness}


@register_system
class Toy(SelfSupervisedSystem[ToyConfig]):
    name, config_class, poses_are_predicted = "toy", ToyConfig, False
    presets = {"toy": Path(__file__).with_name("toy.yaml")}  # noqa: RUF012

    build_motion = StraightAhead  # type: ignore[assignment]

    def build_objective(self) -> Objective:
        return L1(self.config)
