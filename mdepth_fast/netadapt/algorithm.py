"""The outer loop of NetAdapt: in every iteration one layer gives up channels, the one whose loss hurts least."""

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mdepth_fast.files import replacing
from mdepth_fast.models.resize import resize_to
from mdepth_fast.netadapt.graph import ChannelGraph
from mdepth_fast.netadapt.resources import LatencyTable, resource
from mdepth_fast.weights.read import read_torch

__all__ = ["Adapted", "Step", "netadapt"]


@dataclass(frozen=True)
class Step:
    """One iteration: the layer that shrank, its channels before and after, and the network that came of it."""

    layer: str
    before: int
    after: int
    cost: float  # of the network, in the unit of the resource
    score: float  # after short-term fine-tuning


@dataclass
class Adapted:
    """The network, its steps, and its cost at the beginning and the end."""

    model: nn.Module
    steps: list[Step]
    initial: float
    final: float


def netadapt(
    model: nn.Module,
    example: Tensor,
    *,
    budget: float,
    cost: str = "macs",
    table: LatencyTable | None = None,
    fine_tune: Callable[[nn.Module], Any],
    score: Callable[[nn.Module], float],
    long_fine_tune: Callable[[nn.Module], Any] | None = None,
    reduction: float = 0.025,
    decay: float = 0.96,
    multiple: int = 8,
    criterion: str = "score",
    folder: str | Path | None = None,
    resume: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Adapted:
    """Shrinks a network until it costs `budget` times what it does now (arXiv 1804.03230, algorithm 1).

    Iteration i lowers the cost by reduction * decay^(i - 1) of the initial one. For every group of channels that may
    shrink, a copy of the network gets the largest multiple of `multiple` channels with which it meets the iteration's
    target, those of the largest norm (layers that are added up share one choice), is fine-tuned and scored; the best
    copy goes on.

    Args:
        model: the network; it is left as it is.
        example: a batch of inputs, which cost is of.
        budget: share of the initial cost, in (0, 1).
        cost: "macs", "weights" or "latency"; the last needs `table`, which is calibrated on `model` first.
        fine_tune: short-term fine-tuning, in place.
        score: accuracy on a hold-out set, larger is better.
        long_fine_tune: of the network at the end, in place; None leaves it as it is.
        reduction, decay: the schedule. multiple: channels are multiples of it.
        criterion: "score": the best score, as in the paper; "ratio": the least drop of the score for the drop of the
            cost, as in the authors' program.
        folder: where the network is written after every iteration (`iteration_<n>.pt`, a state dict, and `steps.json`).
        resume: go on from the last iteration in `folder`.
        say: receives a line for each iteration.

    Raises:
        ValueError: an argument is out of range, nothing in the network may shrink, or the budget cannot be met; what
            was reached is in `folder` then.
    """
    if not 0 < budget < 1:
        raise ValueError(f"budget: expected a share between 0 and 1, got {budget}")
    if not 0 < reduction < 1 or not 0 < decay <= 1:
        raise ValueError(f"reduction, decay: expected shares in (0, 1) and (0, 1], got {reduction} and {decay}")
    if criterion not in ("score", "ratio"):
        raise ValueError(f'criterion: expected "score" or "ratio", got {criterion!r}')
    if multiple < 1:
        raise ValueError(f"multiple: expected at least 1, got {multiple}")
    store = _Store(Path(folder)) if folder else None
    if resume and store is None:
        raise ValueError("folder: expected one, as resume=True, got None")

    graph = ChannelGraph(model, example)
    if not graph.prunable:
        raise ValueError(f"model: no channels of {type(model).__name__} may shrink")
    settings = {
        "budget": budget, "cost": cost, "reduction": reduction, "decay": decay, "multiple": multiple,
        "criterion": criterion,
    }  # fmt: skip
    steps: list[Step] = []
    current = copy.deepcopy(model)
    if resume and store is not None and store.exists():
        initial, line, steps, state = store.read(settings)
        if table is not None:
            table.line = line
        if state is not None:
            resize_to(current, state)
            graph = ChannelGraph(current, example)
        price = resource(cost, table)
    else:
        if cost == "latency" and table is not None:
            table.calibrate(graph, model, example)
        price = resource(cost, table)
        initial = price(graph, graph.sizes)
        if store is not None:
            store.begin(settings, initial, (1.0, 0.0) if table is None else table.line)
    now = price(graph, graph.sizes)
    last_score = steps[-1].score if steps else score(current)
    goal = budget * initial

    while now > goal:
        iteration = len(steps)
        target = max(goal, now - initial * reduction * decay**iteration)
        best: tuple[float, Step, nn.Module] | None = None
        for number in graph.prunable:
            size = graph.sizes[number]
            count = _most_channels(graph, number, multiple, price, target)
            if not count:
                continue
            candidate = graph.shrink(current, {number: graph.keep_largest(current, number, count)})
            fine_tune(candidate)
            new_score, new_cost = score(candidate), price(graph, {**graph.sizes, number: count})
            step = Step(graph.groups[number].name, size, count, new_cost, new_score)
            merit = new_score
            if criterion == "ratio":
                merit = -(last_score - new_score + 1e-6) / (now - new_cost + 1e-5)
            if best is None or merit > best[0]:
                best = merit, step, candidate
        if best is None:
            raise ValueError(
                f"budget: no layer alone can bring the cost from {now / initial:.3f} to {target / initial:.3f} of the "
                f"initial one in iteration {iteration + 1}; {budget} cannot be met in multiples of {multiple} channels"
            )
        _, step, current = best
        steps.append(step)
        graph = ChannelGraph(current, example)
        now, last_score = step.cost, step.score
        if store is not None:
            store.add(steps, current)
        if table is not None:
            table.save()
        say(
            f"iteration {len(steps)}: {step.layer} {step.before} -> {step.after} channels, "
            f"cost {now / initial:.3f} of the initial, score {step.score:.4g}"
        )
    if long_fine_tune is not None:
        long_fine_tune(current)
    return Adapted(current, steps, initial, now)


def _most_channels(
    graph: ChannelGraph,
    number: int,
    multiple: int,
    price: Callable[[ChannelGraph, dict[int, int]], float],
    target: float,
) -> int:
    """The most channels of a group, fewer than it has, with which the network meets the target; 0 where none do.

    Fewer channels are taken to cost less: halving the range asks for few sizes, each of which may have to be measured.
    """
    low, high = 0, (graph.sizes[number] - 1) // multiple + 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = price(graph, {**graph.sizes, number: middle * multiple}) <= target
        low, high = (middle, high) if fits else (low, middle)
    return low * multiple


class _Store:
    """What an interrupted run goes on from. A network is written before the steps that name it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.record = folder, folder / "steps.json"

    def exists(self) -> bool:
        return self.record.is_file()

    def begin(self, settings: dict[str, Any], initial: float, line: tuple[float, float]) -> None:
        if self.exists():
            raise ValueError(f"folder: {self.folder} holds a run already; resume it or choose another")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.content: dict[str, Any] = {"settings": settings, "initial": initial, "line": line, "steps": []}
        self._write()

    def add(self, steps: list[Step], model: nn.Module) -> None:
        with replacing(self.folder / f"iteration_{len(steps)}.pt") as temporary:
            torch.save(model.state_dict(), temporary)
        self.content["steps"] = [asdict(step) for step in steps]
        self._write()

    def read(self, settings: dict[str, Any]) -> tuple[float, tuple[float, float], list[Step], dict[str, Tensor] | None]:
        try:
            self.content = json.loads(self.record.read_text())
            steps = [Step(**step) for step in self.content["steps"]]
            old = self.content["settings"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{self.record}: not the record of a run ({error})") from error
        different = [f"{key} {old.get(key)} -> {value}" for key, value in settings.items() if old.get(key) != value]
        if different:
            raise ValueError(f"{self.record}: the run had other settings: {', '.join(different)}")
        state = None
        if steps:
            state = read_torch(self.folder / f"iteration_{len(steps)}.pt")
        return self.content["initial"], tuple(self.content["line"]), steps, state

    def _write(self) -> None:
        with replacing(self.record) as temporary:
            temporary.write_text(json.dumps(self.content, indent=1) + "\n")
