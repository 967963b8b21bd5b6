"""A NetAdapt run: the network, data, loss and optimiser of a supervised configuration.

It stands beside the training runs, above the algorithm, which knows no configuration and does not import it.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch.utils.data import DataLoader, Subset

from mdepth_fast.data import DepthAugment, EvaluationView, SkipBroken, collate_depth
from mdepth_fast.evaluation import Evaluator
from mdepth_fast.inference import evaluate
from mdepth_fast.netadapt import Adapted, LatencyTable, measure_latency, netadapt
from mdepth_fast.systems import system_of
from mdepth_fast.systems.supervised import SupervisedConfig, build_loss
from mdepth_fast.training.loader import BatchSampler
from mdepth_fast.training.module import make_optimizer
from mdepth_fast.weights import write_converted

__all__ = ["AdaptSettings", "AdaptedDepth", "adapt"]


@dataclass(frozen=True)
class AdaptSettings:
    """What `mdepth_fast.netadapt.netadapt` is told, and for how long networks are trained in between.

    holdout: samples of the training set, evenly spread, that are never trained on and give the score (their delta_1).
    short_steps, long_steps: optimiser steps on every candidate, and on the network at the end.
    batch: images in the batch whose latency counts.
    """

    budget: float = 0.5
    cost: str = "latency"
    reduction: float = 0.025
    decay: float = 0.96
    multiple: int = 8
    criterion: str = "score"
    holdout: int = 64
    short_steps: int = 500
    long_steps: int = 0
    batch: int = 1


@dataclass
class AdaptedDepth:
    """The result and what it was written to; latencies in seconds, measured and as the table had them."""

    adapted: Adapted
    weights: Path
    metrics: dict[str, float]
    measured: list[float] | None  # before, after; None where latency was not the cost


def adapt(
    config: SupervisedConfig,
    settings: AdaptSettings,
    folder: Path,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> AdaptedDepth:
    """Shrinks the network of a configuration to a budget, fine-tuning with its data, loss, augmentation and optimiser.

    Writes `adapted.safetensors` into `folder`, which `mdepth-fast predict`, `eval` and `load_trained` read, beside
    what `netadapt` and the latency table write.

    Raises ValueError as `netadapt`, and where the data are too few for `holdout` and a batch.
    """
    dataset = system_of(config).training_data(config)
    if config.data.skip_bad:
        dataset = SkipBroken(dataset)
    if not 0 < settings.holdout <= len(dataset) - config.data.batch_size:
        raise ValueError(
            f"holdout: expected 1 to {len(dataset) - config.data.batch_size} of the {len(dataset)} samples, so that a "
            f"batch of {config.data.batch_size} is left to train on, got {settings.holdout}"
        )
    held = {index * len(dataset) // settings.holdout for index in range(settings.holdout)}
    learned = Subset(dataset, [index for index in range(len(dataset)) if index not in held])
    view = EvaluationView(Subset(dataset, sorted(held)), config.data.view, DepthAugment(**vars(config.augment)))

    torch.manual_seed(config.seed)
    net = system_of(config).starting_net(config, {}).to(device)
    loss = build_loss(config.loss, net).to(device)
    augment = DepthAugment(**vars(config.augment))

    def train(model: Any, steps: int) -> None:
        # Every candidate sees the same batches under the same augmentation.
        sampler = BatchSampler(len(learned), config.data.batch_size, seed=config.seed)
        optimizer = make_optimizer(config.optimizer, model.parameters())
        loader = DataLoader(learned, batch_sampler=sampler, num_workers=config.data.workers, collate_fn=collate_depth)
        generator = torch.Generator().manual_seed(config.seed)
        model.train()
        done = 0
        while done < steps:
            for batch in itertools.islice(loader, steps - done):
                moved = augment(move_data_to_device(batch, torch.device(device)), generator)
                output = model(moved["target"])
                value = loss(output, model.ground_truth(moved["depth"], tuple(output.shape[-2:])))
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                done += 1
            sampler.done += len(sampler)
        model.eval()

    def metrics(model: Any) -> dict[str, float]:
        evaluator = Evaluator(config.protocol)
        evaluate(model, view, evaluator)
        return evaluator.compute()

    example = torch.rand(settings.batch, 3, config.augment.height, config.augment.width, device=device)
    table = LatencyTable(folder / "latency.json", device=device) if settings.cost == "latency" else None
    adapted = netadapt(
        net,
        example,
        budget=settings.budget,
        cost=settings.cost,
        table=table,
        fine_tune=lambda model: train(model, settings.short_steps),
        score=lambda model: metrics(model)["d1"],
        long_fine_tune=(lambda model: train(model, settings.long_steps)) if settings.long_steps else None,
        reduction=settings.reduction,
        decay=settings.decay,
        multiple=settings.multiple,
        criterion=settings.criterion,
        folder=folder / "iterations",
        resume=resume,
        say=say,
    )
    result: Any = adapted.model
    name, options = net.created_as
    options = {key: value for key, value in options.items() if not key.endswith("weights")}
    weights = folder / "adapted.safetensors"
    write_converted(weights, name, options, result.state_dict(), source="netadapt", resized=True)
    measured = None
    if settings.cost == "latency":
        measured = measure_latency(net, result, example=example)
    return AdaptedDepth(adapted, weights, metrics(result), measured)
