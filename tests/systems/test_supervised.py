"""The supervised step: stages, frozen norms, parameter groups, what a run leaves behind, what is refused."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from tiny_run import TinyMetric, tiny_supervised, write_frames
from torch import Tensor, nn

from mdepth_fast.data import DataError
from mdepth_fast.evaluation import Evaluator
from mdepth_fast.inference import evaluate, load_trained
from mdepth_fast.models import create_model
from mdepth_fast.systems import load_config
from mdepth_fast.systems.supervised import Supervised, SupervisedLossConfig, build_loss
from mdepth_fast.training.checkpoint import read_checkpoint
from mdepth_fast.training.module import TrainingModule
from mdepth_fast.training.run import train


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
    """The stacks of which some weight has changed, statistics of batch norms aside."""
    weights = [key for key in before if "running" not in key and "num_batches" not in key]
    return {key.partition(".")[0] for key in weights if not before[key].equal(after[key])}


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

    def test_a_stage_goes_on_from_the_weights_of_another_run(self, frames: Path, tmp_path: Path) -> None:
        first = train(tiny_supervised(frames, output=str(tmp_path), stages={"coarse": 3}))
        assert first is not None
        weights = {"model__weights": str(first.checkpoint)}
        second = train(tiny_supervised(frames, output=str(tmp_path), stages={"fine": 3}, **weights))
        assert second is not None
        old, new = (load_trained(run.folder).net.state_dict() for run in (first, second))
        assert moved(old, new) == {"fine"}

    def test_bad_stages_are_refused(self, frames: Path) -> None:
        config = tiny_supervised(frames, stages={"coarse": 0})
        with pytest.raises(ValueError, match=r"stages\.coarse: expected at least one step, got 0"):
            Supervised(config, TinyMetric())
        with pytest.raises(ValueError, match="stage: expected coarse or fine, got 'medium'"):
            Supervised(tiny_supervised(frames, stages={"medium": 3}), TinyMetric())
        net = TinyMetric()
        net.__class__ = type("Plain", (TinyMetric,), {"stage": property()})
        with pytest.raises(ValueError, match="stages: tiny_metric is not trained in stages"):
            Supervised(tiny_supervised(frames, stages={"coarse": 3}), net)


def test_frozen_batch_norms_keep_everything(frames: Path, tmp_path: Path) -> None:
    def norms(freeze: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        watch = Watch()
        config = tiny_supervised(frames, output=str(tmp_path), model__freeze_bn=freeze, stages={"fine": 8})
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
    module = TrainingModule(Supervised(tiny_supervised(frames, optimizer__weight_decay=5e-4), net))
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


def test_what_cannot_be_is_refused_in_one_line(frames: Path, tmp_path: Path) -> None:
    def refused(**changes: Any) -> str:
        changes = {"root": frames, "output": str(tmp_path / "out"), "stages": {"coarse": 2}, **changes}
        config = tiny_supervised(**changes)
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            train(config)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    with pytest.raises(ValueError, match=r"loss\.name.*huber"):
        load_config("fcrn_nyu", ["--loss.name=huber"])
    assert "loss.options: " in refused(loss__name="berhu", loss__options={"speed": 1})
    assert "loss.name: ordinal needs a network of ordinal logits, got TinyMetric" in refused(loss__name="ordinal")
    assert "model.options: " in refused(model__options={"speed": 1})
    assert "no model is called 'tiny'" in refused(model__name="tiny")
    message = refused(stages={})
    assert message.startswith("model.weights: tiny_metric does not train 10 of its parameters, coarse.0.0.weight among")
    net = create_model("fcrn_resnet50_deconv", layers=18)
    torch.save(net.state_dict(), tmp_path / "fcrn.pt")
    message = refused(model__weights=str(tmp_path / "fcrn.pt"))
    assert "fcrn.pt" in message and "coarse.0.0.weight" in message
    missing = refused(root="", data__val_split=None)
    assert missing == "data.root: expected the folder of the rgbd_folder data, got none; give --data.root=FOLDER"
    assert "data.root: no such folder: /nowhere" in refused(root="/nowhere")
    assert "data.split: expected the list of frames" in refused(data__name="depth_list", data__val_split=None)
    assert "data.cache_size: expected [height, width]" in refused(
        data__cache=str(tmp_path / "cache"), data__cache_size=[48]
    )
    assert "crop_size" in refused(augment__height=100, augment__width=100)


def test_lists_of_frames(frames: Path, tmp_path: Path) -> None:
    for name, numbers in (("train", range(6)), ("val", (6, 7))):
        lines = [f"images/{n:03d}.png /depth/{n:03d}.png 518.8579" for n in numbers]
        (tmp_path / f"{name}.txt").write_text("\n".join([*lines, "images/000.png None 518.8579"]))
    lists = {f"data__{key}": str(tmp_path / f"{name}.txt") for key, name in (("split", "train"), ("val_split", "val"))}
    config = tiny_supervised(frames, data__name="depth_list", **lists)
    dataset, held_out = Supervised.training_data(config), Supervised.evaluation_data(config)
    assert [len(dataset), len(held_out)] == [6, 2]
    expected = Supervised.training_data(tiny_supervised(frames))
    assert torch.equal(dataset[3]["depth"], expected[3]["depth"]), "in millimetres both"
    assert torch.equal(held_out[1]["target"], expected[7]["target"])
    assert Supervised.evaluation_data(tiny_supervised(frames, data__val_split=None)) is None


@pytest.mark.parametrize("name", ["silog", "berhu", "l1", "l2", "log_l1", "ssi"])
def test_every_loss_by_its_name(name: str) -> None:
    options = {"silog": {"form": "sqrt", "variance_focus": 0.85}, "berhu": {"threshold": 0.3}}.get(name, {})
    loss = build_loss(SupervisedLossConfig(name, options), TinyMetric())  # type: ignore[arg-type]
    depth = torch.rand(2, 1, 24, 32) + 1
    depth[:, :, ::3] = 0
    output = (1.1 * depth + 0.3 * torch.rand(depth.shape) + 0.1).requires_grad_()
    value = loss(output, depth)
    (gradient,) = torch.autograd.grad(value, output)
    assert value > 0 and value.isfinite()
    assert (gradient != 0).any() and not gradient[depth == 0].any()
    for option, expected in options.items():
        assert getattr(loss, option) == expected


def test_an_ordinal_loss_has_the_bins_of_the_network() -> None:
    net = create_model("dorn_resnet101_nyu", layers=50, width=4, window=(33, 41), K=7, pool=4)
    loss = build_loss(SupervisedLossConfig("ordinal"), net)
    assert loss.thresholds.tolist() == pytest.approx(net.thresholds.tolist())
    assert len(loss.thresholds) == 8


def test_a_broken_frame_is_named_or_skipped_and_counted(tmp_path: Path) -> None:
    root = write_frames(tmp_path / "root")
    broken = root / "depth" / "005.png"
    broken.write_bytes(broken.read_bytes()[:100])
    settings: dict[str, Any] = {"output": str(tmp_path), "stages": {"coarse": 4}, "data__val_split": None}
    with pytest.raises(DataError, match=r"005\.png"):
        train(tiny_supervised(root, **settings))
    with pytest.warns(UserWarning, match=r"skipped a broken sample: .*005\.png"):
        result = train(tiny_supervised(root, **settings, data__skip_bad=True))
    assert result is not None and len(result.skipped) == 1


def test_a_cache_decodes_once(frames: Path, tmp_path: Path) -> None:
    root = write_frames(tmp_path / "root")
    config = tiny_supervised(
        root,
        output=str(tmp_path),
        stages={"coarse": 8},
        data__val_split=None,
        data__cache=str(tmp_path / "cache"),
        data__cache_size=[32, 48],
    )
    dataset = Supervised.training_data(config)
    assert dataset[0]["target"].shape == (3, 32, 48)
    for index in range(8):
        dataset[index]
    for path in (root / "images").iterdir():
        status = path.stat()
        path.write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    result = train(config)
    assert result is not None and result.after is None
    assert result.panel.is_file()


def test_every_view_is_evaluated_and_drawn(frames: Path, tmp_path: Path) -> None:
    scores = {}
    for view in ("whole", "centre", "stretched", "network"):
        config = tiny_supervised(frames, output=str(tmp_path), data__view=view, stages={"coarse": 1})
        result = train(config)
        assert result is not None and result.after is not None
        assert result.panel.is_file()
        # Eight frames with their own trained network, again: as the validation in training and `mdepth-fast eval` do.
        evaluator = Evaluator(config.protocol)
        trained = load_trained(result.folder)
        evaluate(trained.net, Supervised.evaluation_data(config), evaluator)
        assert evaluator.compute() == result.after
        scores[view] = result.after["abs_rel"]
    assert len(set(scores.values())) == 4


def test_what_predicts_inverse_depth_needs_a_protocol_that_aligns_it(frames: Path, tmp_path: Path) -> None:
    config = tiny_supervised(
        frames,
        output=str(tmp_path),
        model__name="tiny_inverse",
        loss={"name": "ssi"},
        stages={"coarse": 2},
    )
    with pytest.raises(ValueError, match="protocol: expected one that aligns inverse depth"):
        train(config)
    config.protocol = "nyu_affine"
    result = train(config)
    assert result is not None and result.after is not None
    assert 0 < result.after["abs_rel"] < 1
    assert result.panel.is_file()
