"""What training any system has in common: optimisers, schedules, parameter groups, the mean loss of an epoch."""

import math
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from torch import Tensor, nn

from mdepth_fast.systems import Config, OptimizerConfig, StepInfo, System
from mdepth_fast.training.loader import BatchSampler, TrainLoader
from mdepth_fast.training.module import TrainingModule


class Known(System[Config]):
    """Its loss is what `losses` says, by epoch and step, else the mean of the batch."""

    metrics = ("abs_rel",)

    def __init__(self, settings: Any, losses: list[list[float]] | None = None) -> None:
        super().__init__(settings)
        self.encoder, self.head = nn.Linear(2, 2), nn.Linear(2, 1)
        self.given = iter([loss for epoch in losses or () for loss in epoch])

    @classmethod
    def evaluator(cls, protocol: Any) -> Any:
        return None

    def step(self, batch: dict[str, Any], info: StepInfo) -> dict[str, Tensor]:
        loss = next(self.given, batch["value"].float().mean())
        return {"loss": 0.0 * sum(p.sum() for p in self.parameters()) + loss}


def fit(
    module: TrainingModule, *, epochs: int = 2, values: int = 8, batch_size: int = 2, **options: Any
) -> list[list[float]]:
    """The learning rates of every group at every step."""
    used: list[list[float]] = []

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            used.append([group["lr"] for group in optimizer.param_groups])

    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Watch()],
        **options,
    )
    samples: Any = [{"name": "sample", "value": value} for value in range(values)]
    trainer.fit(module, TrainLoader(samples, BatchSampler(values, batch_size)))
    return used


def config(**optimizer: Any) -> Any:
    return Config(protocol="synthetic", optimizer=OptimizerConfig(**optimizer))


def build(settings: Any, losses: list[list[float]] | None = None) -> TrainingModule:
    return TrainingModule(Known(settings, losses))


def test_poly_follows_its_formula_at_every_step() -> None:
    settings = config(name="sgd", lr=0.01, schedule="poly", power=0.9, end=0.001)
    used = fit(build(settings), epochs=3)
    expected = [0.001 + 0.009 * (1 - step / 12) ** 0.9 for step in range(12)]
    assert [rates[0] for rates in used] == pytest.approx(expected)
    # A limit in steps is what the curve ends at, wherever it lies in an epoch.
    used = fit(build(settings), epochs=-1, max_steps=7)
    assert [rates[0] for rates in used] == pytest.approx([0.001 + 0.009 * (1 - step / 7) ** 0.9 for step in range(7)])


def test_cosine_is_half_a_period_from_lr_to_end() -> None:
    used = fit(build(config(name="sgd", lr=0.01, schedule="cosine", end=0.001)), epochs=3)
    expected = [0.001 + 0.009 * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)]
    assert [rates[0] for rates in used] == pytest.approx(expected)


def test_a_constant_rate_stays() -> None:
    assert fit(build(config(lr=3e-4, schedule="constant"))) == [[3e-4]] * 8


def test_steps_are_taken_at_the_end_of_epochs() -> None:
    used = fit(build(config(name="sgd", lr=1.0, schedule="step", step_size=2, gamma=0.1)), epochs=5)
    assert [rates[0] for rates in used] == pytest.approx([1.0] * 8 + [0.1] * 8 + [0.01] * 4)


def test_milestones_are_epochs_after_which_the_rate_drops() -> None:
    settings = config(name="sgd", lr=1.0, schedule="milestones", milestones=[3, 4], gamma=0.5)
    assert [rates[0] for rates in fit(build(settings), epochs=5)] == [1.0] * 12 + [0.5] * 4 + [0.25] * 4
    for wrong in ([], [0, 2]):
        with pytest.raises(ValueError, match=r"optimizer\.milestones: expected numbers of epochs, got"):
            fit(build(config(schedule="milestones", milestones=wrong)))


def test_a_plateau_of_the_mean_training_loss_drops_the_rate() -> None:
    """Patience 1: the second epoch in a row that does not lower the mean is one too many, whatever its steps do."""
    losses = [[6.0, 0.0, 6.0], [5.0, 0.0, 4.0], [4.0, 2.0, 3.0], [3.0, 4.0, 2.0], [2.0, 6.0, 1.0], [1.0, 4.0, 1.0]]
    assert [sum(epoch) / 3 for epoch in losses] == [4, 3, 3, 3, 3, 2]
    module = build(config(name="sgd", lr=1.0, schedule="plateau", gamma=0.5, patience=1), [*losses, *losses])
    used = fit(module, epochs=12, values=6)
    rates = [step[0] for step in used[::3]]
    # Dropped after epochs 3, 7 and 9.
    assert rates == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]


@pytest.mark.parametrize(
    ("settings", "kind", "expected"),
    [
        ({"name": "adam", "eps": 1e-3}, torch.optim.Adam, {"eps": 1e-3, "weight_decay": 0.0}),
        ({"name": "adamw", "eps": 1e-3, "weight_decay": 0.01}, torch.optim.AdamW, {"eps": 1e-3, "weight_decay": 0.01}),
        (
            {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4},
            torch.optim.SGD,
            {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": False},
        ),
    ],
)
def test_the_optimiser_is_as_configured(settings: dict[str, Any], kind: type, expected: dict[str, Any]) -> None:
    module = build(config(lr=0.02, schedule="constant", **settings))
    optimizer = module.configure_optimizers()["optimizer"]
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in ("lr", *expected)} == {"lr": 0.02, **expected}


def test_runs_that_were_saved_before_keep_their_optimiser() -> None:
    old = Config.from_dict({"run": "old", "optimizer": {"lr": 1e-3, "step_size": 4, "gamma": 0.5}}).optimizer
    assert old == OptimizerConfig("adam", 1e-3, schedule="step", step_size=4, gamma=0.5)
