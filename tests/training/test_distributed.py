"""Two processes train as one, and validate as one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import Recorder, read_record, spawn, tiny_config, tiny_supervised, write_frames

from mdepth_fast.evaluation import Evaluator
from mdepth_fast.inference import evaluate, load_trained
from mdepth_fast.systems import system_of
from mdepth_fast.training.run import train

TWO = {"trainer__devices": 2, "trainer__strategy": "ddp"}


@pytest.mark.parametrize("task", ["self_supervised", "supervised"])
def test_two_processes_train_as_one_on_the_same_global_batch(tmp_path: Path, task: str) -> None:
    """Without batch norm and augmentation: statistics and random numbers belong to a process, the rest is shared."""
    config: dict[str, Any] = {"output": str(tmp_path), "data__batch_size": 4, "augment__flip": 0.0}
    config["trainer__max_epochs"] = 3
    if task == "supervised":
        # Every stage leaves parameters without a gradient, and each has others.
        config |= {"root": str(write_frames(tmp_path / "frames", holes=0)), "stages": {"coarse": 3, "fine": 3}}
        config |= {"model__name": "tiny_metric_without_norm", "augment__recolor": 0.0, "augment__scale": [1, 1]}
        config |= {"augment__rotate": 0.0, "augment__crop": "centre"}
    else:
        config |= {"model__name": "tiny_depth_without_norm", "pose__name": "tiny_pose_without_norm"}
        config |= {"augment__jitter": 0.0}
    build = tiny_supervised if task == "supervised" else tiny_config
    train(build(**config), callbacks=[Recorder(tmp_path / "one", None)])
    two = spawn(tmp_path / "two", {**config, "trainer__devices": 2, "trainer__strategy": "ddp"})
    assert two.returncode == 0, two.stderr
    expected, actual = read_record(tmp_path / "one"), read_record(tmp_path / "two")
    assert sorted(expected) == sorted(actual) == list(range(1, 7))
    for step, line in expected.items():
        assert actual[step]["loss"] == pytest.approx(line["loss"], rel=1e-5)


@pytest.mark.parametrize("case", ["self-supervised, 7 samples", "supervised, 1 sample"])
def test_two_processes_validate_as_one(tmp_path: Path, case: str) -> None:
    """With batch norms, whose statistics differ between processes after a step; the run ends without a validation."""
    config: dict[str, Any] = {"output": str(tmp_path), "trainer__max_epochs": 3, "trainer__check_val_every_n_epoch": 2}
    count = 7 if "7" in case else 1
    if "self" in case:
        config |= {"data__length": 7, "data__batch_size": 2, "protocol": "kitti_eigen"}
    else:
        root = write_frames(tmp_path / "frames", count=6)
        held_out = write_frames(tmp_path / "held_out", count=count)
        config |= {"root": str(root), "data__val_split": str(held_out), "stages": {"coarse": 9}}
    run = spawn(tmp_path / "record", {**config, **TWO})
    assert run.returncode == 0, run.stderr
    # torch itself says in C++ that a step had no unused parameters after all.
    warned = [line for line in run.stderr.splitlines() if "warn" in line.lower() and "reducer.cpp" not in line]
    assert not warned and "sync_dist" not in run.stderr, run.stderr

    logged = [
        [json.loads(line) for line in (tmp_path / f"record.val.{rank}").read_text().splitlines()] for rank in (0, 1)
    ]
    assert len(logged[0]) == 1 and logged[0] == logged[1], "every process knows the same numbers"
    folder = tmp_path / "tiny" / "001"
    record = json.loads((folder / "metrics.json").read_text())
    assert record["before"]["images"] == record["after"]["images"] == count
    (validated,) = logged[0]
    best = record["checkpoints"]["best"]
    assert best["value"] == min(validated["val/abs_rel"], record["after"]["abs_rel"])
    assert best["step"] in (validated["step"], record["checkpoints"]["last"]["step"])
    # One process on the same weights.
    torch.set_num_threads(1)
    during = {key[4:]: value for key, value in validated.items() if "val/" in key}
    for weights, numbers in ((folder, record["after"]), (tmp_path / "record.val.ckpt", during)):
        trained = load_trained(weights)
        evaluator = Evaluator(trained.config.protocol)
        evaluate(trained.net, system_of(trained.config).evaluation_data(trained.config), evaluator)
        expected = evaluator.compute()
        assert numbers == pytest.approx({key: expected[key] for key in numbers}, rel=1e-12, abs=1e-12)


def test_processes_that_start_within_a_run_are_refused(tmp_path: Path) -> None:
    config = tiny_config(output=str(tmp_path), trainer__strategy="ddp_spawn")
    with pytest.raises(ValueError, match=r"trainer\.strategy: expected one that starts a program .*, got ddp_spawn"):
        train(config)
    assert not list(tmp_path.rglob("*.ckpt"))
