"""The supervised step: stages, frozen norms, parameter groups, what a run leaves behind, what is refused."""

from pathlib import Path
from typing import Any

import pytest
from lightning import Callback
from tiny_run import TinyMetric, tiny_supervised, write_frames
from torch import Tensor, nn

from mdepth_fast.training.checkpoint import read_checkpoint
from mdepth_fast.training.run import train
from mdepth_fast.training.supervised import SupervisedDepth
from mdepth_fast.training.trained import load_trained


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frames(tmp_path_factory.mktemp("frames") / "root")


class Watch(Callback):
    """The stage, the loss and a copy of the weights after every step."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.losses: list[float] = []
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.stages.append(pl_module.depth_net.stage)
        self.losses.append(outputs["loss"].item())
        self.weights.append({key: value.clone() for key, value in pl_module.depth_net.state_dict().items()})


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The stacks of which some weight, not a statistic, has changed."""
    return {key.partition(".")[0] for key in before if "running" not in key and not before[key].equal(after[key])} - {
        "num_batches_tracked"
    }


class TestStages:
    def test_each_trains_its_own_part_and_leaves_the_other_as_it_is(self, frames: Path, tmp_path: Path) -> None:
        """With momentum and weight decay, which would move what is not trained."""
        config = tiny_supervised(
            frames,
            output=str(tmp_path),
            stages={"coarse": 6, "fine": 5},
            model__name="tiny_metric_without_norm",
            optimizer__weight_decay=0.1,
        )
        watch = Watch()
        result = train(config, callbacks=[watch])
        assert watch.stages == ["coarse"] * 6 + ["fine"] * 5, "training ends with the last stage"
        steps = [moved(before, after) for before, after in zip(watch.weights, watch.weights[1:])]
        assert steps == [{"coarse"}] * 5 + [{"fine"}] * 5
        assert result is not None
        stored = read_checkpoint(result.checkpoint)
        assert stored["mdepth_fast"]["stage"] == "fine"
        rates = [group["lr"] for group in stored["optimizer_states"][0]["param_groups"]]
        assert rates == pytest.approx([0.01, 0.1, 0.005]), "the multipliers of all stages"

    def test_a_run_that_ends_in_the_first_predicts_by_the_first(self, frames: Path, tmp_path: Path) -> None:
        config = tiny_supervised(frames, output=str(tmp_path), stages={"coarse": 6, "fine": 5}, trainer__max_steps=3)
        result = train(config)
        assert result is not None
        trained = load_trained(result.folder)
        assert trained.net.stage == "coarse"
        assert trained.config == config

    def test_bad_stages_are_refused(self, frames: Path) -> None:
        config = tiny_supervised(frames, stages={"coarse": 0})
        with pytest.raises(ValueError, match=r"stages\.coarse: expected at least one step, got 0"):
            SupervisedDepth(config, TinyMetric())
        with pytest.raises(ValueError, match="stage: expected coarse or fine, got 'medium'"):
            SupervisedDepth(tiny_supervised(frames, stages={"medium": 3}), TinyMetric())
        net = TinyMetric()
        net.__class__ = type("Plain", (TinyMetric,), {"stage": property()})
        with pytest.raises(ValueError, match="stages: tiny_metric is not trained in stages"):
            SupervisedDepth(tiny_supervised(frames, stages={"coarse": 3}), net)


def test_frozen_batch_norms_keep_everything(frames: Path, tmp_path: Path) -> None:
    def norms(freeze: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        watch = Watch()
        config = tiny_supervised(frames, output=str(tmp_path), model__freeze_bn=freeze, trainer__max_epochs=2)
        train(config, callbacks=[watch])
        names = {
            f"{name}.{key}"
            for name, module in TinyMetric().named_modules()
            if isinstance(module, nn.BatchNorm2d) and name.startswith("fine")
            for key in module.state_dict()
        }
        assert len(names) == 5
        first, last = watch.weights[0], watch.weights[-1]
        assert not first["fine.1.weight"].equal(last["fine.1.weight"]), "the rest learns"
        return {key: first[key] for key in names}, {key: last[key] for key in names}

    first, last = norms(True)
    assert all(first[key].equal(last[key]) for key in first)
    first, last = norms(False)
    assert not any(first[key].equal(last[key]) for key in first)


def test_parameter_groups_are_those_of_the_network(frames: Path) -> None:
    net = TinyMetric()
    net.stage = "coarse"
    net.coarse[0][0].requires_grad_(False)
    module = SupervisedDepth(tiny_supervised(frames, optimizer__weight_decay=5e-4), net)
    optimizer = module.configure_optimizers()["optimizer"]
    first, last = optimizer.param_groups
    assert (first["lr"], last["lr"]) == pytest.approx((0.01, 0.1))
    assert first["weight_decay"] == last["weight_decay"] == 5e-4
    frozen = {id(parameter) for parameter in net.coarse[0][0].parameters()}
    expected = {id(parameter) for parameter in net.coarse[:3].parameters()} - frozen
    assert {id(parameter) for parameter in first["params"]} == expected
    assert {id(parameter) for parameter in last["params"]} == {
        id(parameter) for parameter in net.coarse[3].parameters()
    }
