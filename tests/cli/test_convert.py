"""`mdepth-fast convert`: every kind of input, what it writes, what it refuses, and what it never runs."""

import functools
import importlib
import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_run
import torch
from huggingface_hub import ModelCard
from PIL import Image
from released_blobs import released_blobs
from safetensors.torch import load_file, save_file

from mdepth_fast.bench import plain_monodepth2
from mdepth_fast.cli import main
from mdepth_fast.evaluation import get_protocol
from mdepth_fast.inference import load_system, load_trained
from mdepth_fast.models import DORN, DepthModel, PoseModel, create_model, load_checkpoint, registry
from mdepth_fast.systems.monodepth2 import Monodepth2
from mdepth_fast.weights import converted_model, read_pickled_module, write_converted

# A training script of somebody else: a whole net, statistics that pruning has turned into parameters, and a result
# that is pickled beside it.
SCRIPT = """
import torch
from torch import nn

class Unit(nn.Sequential):
    def __init__(self, inputs, outputs):
        super().__init__(nn.Conv2d(inputs, outputs, 3, bias=False), nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))
        self[1].running_mean.normal_()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv0, self.conv1 = Unit(3, 4), Unit(4, 5)
        self.register_buffer("grid", torch.arange(6.0))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.nothing = None
        self.register_parameter("absent", None)
        mean = self.conv1[1].running_mean
        del self.conv1[1].running_mean
        self.conv1[1].running_mean = nn.Parameter(mean)
        self.conv0.register_forward_hook(hook)

class PoseNet(nn.Module):
    def __init__(self):
        super().__init__()
        sizes = ((6, 16, 7), (16, 32, 5), (32, 64, 3), (64, 128, 3), (128, 256, 3), (256, 256, 3), (256, 256, 3))
        self.net = nn.ModuleList(nn.Conv2d(i, o, k, 2, k // 2) for i, o, k in sizes)
        self.pose_conv = nn.Conv2d(256, 6, 1)

class Result:
    def __init__(self):
        self.rmse, self.history = 0.604, [1, 2]

def hook(module, inputs, output):
    raise RuntimeError("nothing of the script runs")
"""


@pytest.fixture
def pickled(tmp_path, monkeypatch):
    """Writes a file as {"epoch", "best_result", "model"} and forgets the script; returns the state dict."""
    (tmp_path / "their_script.py").write_text(SCRIPT)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(path, name, zipped=True, parallel=False):
        script = importlib.import_module("their_script")
        net = getattr(script, name)()
        content = {
            "epoch": 19,
            "best_result": script.Result(),
            "model": torch.nn.DataParallel(net) if parallel else net,
        }
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        del sys.modules["their_script"]
        (tmp_path / "their_script.py").unlink()
        return net.state_dict()

    yield write
    sys.modules.pop("their_script", None)


def equal(got, expected):
    assert set(got) == set(expected)
    return all(torch.equal(got[key], expected[key]) for key in expected)


def converts(capsys, *words):
    assert main(["convert", *map(str, words)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def fails(capsys, *words):
    assert main(["convert", *map(str, words)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("mdepth-fast: error: "), lines
    return lines[0]


@pytest.mark.parametrize("suffix", ["pth", "pth.tar", "npz", "safetensors"])
def test_the_model_is_recognised(tmp_path, capsys, suffix):
    state = create_model("posecnn").state_dict()
    source, target = tmp_path / f"weights.{suffix}", tmp_path / "new" / "posecnn.safetensors"
    if suffix == "npz":
        np.savez(source, **{key: value.numpy() for key, value in state.items()})
    elif suffix == "safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, source)
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, source)
    assert converts(capsys, source, target) == f"{target}: posecnn, {len(state)} tensors\n"
    assert equal(load_file(target), state) and converted_model(target) == ("posecnn", {})
    net = create_model("posecnn")
    load_checkpoint(net, target)
    assert equal(net.state_dict(), state)
    assert [path.name for path in target.parent.iterdir()] == [target.name]  # no temporary file is left


@pytest.fixture
def frame(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (60, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "frame.png")
    return tmp_path / "frame.png"


def test_released_weights_become_a_file_that_predicts(tmp_path, capsys, monkeypatch, frame):
    small = functools.partial(DORN, width=2, window=(49, 65), K=5)
    monkeypatch.setitem(registry._FACTORIES, "small_dorn", small)
    np.savez(tmp_path / "cvpr_kitti.npz", **released_blobs("kitti"))
    target = tmp_path / "dorn.safetensors"
    out = converts(capsys, tmp_path / "cvpr_kitti.npz", target)
    assert "dorn.safetensors: small_dorn, decode='released', " in out
    reference = small(decode="released")
    load_checkpoint(reference, tmp_path / "cvpr_kitti.npz")
    trained = load_trained(target)
    assert trained.net.decode == "released" and not trained.net.training
    assert equal(trained.net.state_dict(), reference.state_dict())
    with pytest.warns(UserWarning, match="are meant for decode='released'"):
        load_checkpoint(small(), target)
    assert main(["predict", str(target), str(frame), "--output", str(tmp_path / "out"), "--format", "npy"]) == 0
    assert "metric depth as float32 npy, in m" in capsys.readouterr().out
    image = torch.from_numpy(np.array(Image.open(frame))).permute(2, 0, 1).float() / 255
    depth = reference.predict(image).depth[0, 0].numpy()
    np.testing.assert_allclose(np.load(tmp_path / "out" / "frame_depth.npy"), depth, rtol=1e-5)


def test_checkpoints_of_training_keep_their_options(tmp_path, capsys):
    config = tiny_run.tiny_config(model__min_depth=0.7)
    net = tiny_run.TinyDepth(min_depth=0.7, max_depth=20.0)
    state = {f"depth_net.{key}": value for key, value in net.state_dict().items()}
    torch.save({"state_dict": state, "mdepth_fast": {"config": config.to_dict(), "sources": [-1]}}, tmp_path / "a.ckpt")
    converts(capsys, tmp_path / "a.ckpt", tmp_path / "a.safetensors")
    again = load_trained(tmp_path / "a.safetensors").net
    assert (again.min_depth, again.max_depth, again.unit, again.input_size) == (0.7, 20.0, None, (64, 96))
    assert equal(again.state_dict(), net.state_dict())


def test_published_folders(tmp_path, capsys):
    depth, pose = plain_monodepth2.PlainDepthNet(), plain_monodepth2.PlainPoseNet()
    folder = tmp_path / "stereo_640x192"
    folder.mkdir()
    entries = {"height": 192, "width": 640, "use_stereo": True}
    torch.save(depth.encoder.state_dict() | entries, folder / "encoder.pth")
    torch.save(depth.decoder.state_dict(), folder / "depth.pth")
    torch.save(pose.encoder.state_dict(), folder / "pose_encoder.pth")
    torch.save(pose.decoder.state_dict(), folder / "pose.pth")
    assert "monodepth2_resnet18" in converts(capsys, folder, tmp_path / "depth.safetensors")
    net, expected = load_trained(tmp_path / "depth.safetensors").net, load_trained(folder).net
    assert equal(net.state_dict(), expected.state_dict())
    assert (net.unit, net.max_depth, net.input_size) == ("m", 540.0, (192, 640))
    converts(capsys, folder, tmp_path / "pose.safetensors", "--model", "posenet_resnet18")
    assert converted_model(tmp_path / "pose.safetensors") == ("posenet_resnet18", {})


def test_models_of_equal_tensors_are_to_be_named(tmp_path, capsys, monkeypatch):
    for name in ("twin_a", "twin_b"):
        monkeypatch.setitem(registry._FACTORIES, name, functools.partial(DORN, width=2, window=(49, 65), K=5))
    torch.save(DORN(width=2, window=(49, 65), K=5).state_dict(), tmp_path / "weights.pth")
    message = fails(capsys, tmp_path / "weights.pth", tmp_path / "out.safetensors")
    assert "weights.pth: twin_a, twin_b take it alike; --model says which it is" in message
    assert not (tmp_path / "out.safetensors").exists()
    converts(capsys, tmp_path / "weights.pth", tmp_path / "out.safetensors", "--model", "twin_b")
    # Own weights, not the released ones: the options of these do not apply.
    assert converted_model(tmp_path / "out.safetensors") == ("twin_b", {})


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickled_module_gives_its_tensors_and_runs_nothing(tmp_path, capsys, pickled, zipped):
    source, target = tmp_path / "weights.pth.tar", tmp_path / "out.safetensors"
    state = pickled(source, "PoseNet", zipped, parallel=True)
    message = fails(capsys, source, target)
    assert "their_script" in message and "--trust-pickle" in message and "a pickle can run code" in message
    assert not target.exists()
    assert "posecnn" in converts(capsys, source, target, "--trust-pickle")
    assert equal(load_file(target), state)


def test_everything_that_a_state_dict_holds_is_found(tmp_path, pickled):
    state = pickled(tmp_path / "net.pth.tar", "Net")
    assert {"conv0.1.running_mean", "conv1.1.running_mean", "conv0.1.num_batches_tracked", "grid"} <= set(state)
    assert equal(read_pickled_module(tmp_path / "net.pth.tar"), state)


class Command:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize(
    ("zipped", "flag"), [(True, []), (False, []), (True, ["--trust-pickle"])], ids=["zip", "legacy", "trusted"]
)
def test_a_malicious_pickle_runs_nothing(tmp_path, capsys, zipped, flag):
    marker, source = tmp_path / "marker", tmp_path / "evil.pth"
    torch.save({"model": Command(marker)}, source, _use_new_zipfile_serialization=zipped)
    message = fails(capsys, source, tmp_path / "out.safetensors", *flag)
    assert "evil.pth: " in message
    assert ("no module and no tensors in it" if flag else "--trust-pickle") in message
    assert not marker.exists() and not (tmp_path / "out.safetensors").exists()


def test_errors(tmp_path, capsys):
    torch.save(create_model("posecnn").state_dict(), tmp_path / "weights.pth")
    torch.save({"weight": torch.ones(3)}, tmp_path / "other.pth")
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    target = tmp_path / "out.safetensors"
    for words, message in [
        (["weights.pth", "out.pth"], "output: expected a file named *.safetensors, got"),
        (["nowhere.pth", "out.safetensors"], "nowhere.pth: no such checkpoint file"),
        (["broken.pth", "out.safetensors"], "broken.pth: damaged, truncated or not a checkpoint"),
        (["broken.pth", "out.safetensors", "--trust-pickle"], "broken.pth: no module could be read from it"),
        (["other.pth", "out.safetensors"], "other.pth: no registered model takes it exactly; it is like no"),
        (["weights.pth", "out.safetensors", "--model", "posenet_resnet18"], "the likely model: posecnn"),
        (["weights.pth", "out.safetensors", "--model", "posecn"], "no model is called 'posecn'; did you mean posecnn"),
    ]:
        assert message in fails(capsys, *(tmp_path / word if "." in word else word for word in words))
        assert not target.exists()
    save_file({"weight": torch.ones(3)}, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match=r"plain\.safetensors: does not say which model it is for"):
        load_trained(tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match=r"published weights are made readable by `mdepth-fast convert`"):
        load_trained(tmp_path / "weights.pth")


@pytest.fixture
def checkpoint(tmp_path):
    """Of a run with stereo, a shared pose network and a predicted mask, untrained."""
    config = tiny_run.tiny_config(
        model={"name": "monodepth2_resnet18", "min_depth": 0.54, "max_depth": 540.0},
        pose={"name": "posenet_shared"},
        loss={"predictive_mask": True, "auto_mask": False},
    )
    system = Monodepth2.create(config, SimpleNamespace(sources=(-1, 1, "stereo")))
    saved = {"config": config.to_dict(), **system.extra_state()}
    torch.save({"state_dict": system.state_dict(), "mdepth_fast": saved}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt", system.eval(), config


def test_a_run_becomes_a_published_folder(capsys, checkpoint, tmp_path):
    path, system, config = checkpoint
    folder = tmp_path / "published"
    names = ["depth.pth", "pose.pth", "predictive_mask.pth", "encoder.pth"]
    assert converts(capsys, path, folder) == f"{folder}: {', '.join(names)}\n"
    assert sorted(file.name for file in folder.iterdir()) == sorted(names)
    encoder = torch.load(folder / "encoder.pth", weights_only=True)
    assert (encoder["height"], encoder["width"], encoder["use_stereo"]) == (64, 96, True)
    assert encoder["encoder.fc.weight"].shape == (1000, 512)

    trained = load_trained(folder)
    assert equal(trained.net.state_dict(), system.depth_net.state_dict())
    assert (trained.net.unit, trained.net.max_depth, trained.net.input_size) == ("m", 540.0, (64, 96))
    # The translation is in units of 5.4 m there, and in metres again for a run in metres.
    features = torch.rand(2, 1, 512, 2, 3)
    with torch.no_grad():
        motion, published = (net(*features) for net in (system.pose_net, load_system(folder).pose_net))
        config.model.weights = config.pose.weights = str(folder)
        config.data.height, config.data.width = 96, 160
        again = Monodepth2.create(config, SimpleNamespace(sources=(-1, 1, "stereo"))).eval()
        torch.testing.assert_close(published[1] * 5.4, motion[1])
        torch.testing.assert_close(again.pose_net(*features)[1], motion[1])
    assert equal(again.mask_net.state_dict(), system.mask_net.state_dict())
    assert again.depth_net.input_size == (96, 160), "fine-tuned at another size than the weights were trained at"

    assert "expected a new or empty folder" in fails(capsys, path, folder)


METRICS = {"abs_rel": 0.125, "rmse": 4.5, "d1": float("nan")}


def write_run(folder, metrics=METRICS):
    """A run folder as training leaves it, on data of a private place."""
    config = tiny_run.tiny_config(
        data__split="/home/somebody/splits/mine.txt", model__weights="/home/somebody/start.pth", protocol="kitti_eigen"
    )
    net = tiny_run.TinyDepth(min_depth=0.5, max_depth=20.0)
    state = {f"depth_net.{key}": value for key, value in net.state_dict().items()}
    folder.mkdir()
    for name in ("last", "best"):
        values = {"state_dict": state, "mdepth_fast": {"config": config.to_dict(), "sources": [-1]}}
        torch.save(values, folder / f"{name}.ckpt")
    kept = {"last": {"step": 20}, "best": {"step": 8, "monitor": "val/abs_rel", "mode": "min", "value": 0.11}}
    (folder / "metrics.json").write_text(json.dumps({"before": metrics, "after": metrics, "checkpoints": kept}))
    return net


def test_a_run_for_the_hub(tmp_path, capsys, frame):
    net = write_run(tmp_path / "run")
    out = converts(capsys, tmp_path / "run", tmp_path / "hub", "--to", "hub", "--license", "mit")
    assert out == f"{tmp_path / 'hub'}: tiny_depth, config.json, model.safetensors, README.md\n"
    assert equal(DepthModel.from_pretrained(tmp_path / "hub").state_dict(), net.state_dict())
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    assert card.data.license == "mit" and "Licence of these weights: mit." in card.text
    results = {one.metric_type: one.metric_value for one in card.data.eval_results}
    assert results == {"abs_rel": 0.125, "rmse": 4.5}, "NaN is in the table, but is no value of the header"
    assert get_protocol("kitti_eigen").describe() in card.text
    assert "| abs_rel | rmse | d1 |" in card.text and "| 0.125 | 4.5 | nan |" in card.text
    for line in ("data: synthetic", "split: mine.txt", "optimiser steps: 20", "began with weights of `start.pth`"):
        assert f"\n- {line}" in card.text
    assert "somebody" not in card.text
    assert main(["predict", str(tmp_path / "hub"), str(frame), "--output", str(tmp_path / "out")]) == 0
    capsys.readouterr()

    converts(capsys, tmp_path / "run", tmp_path / "best", "--to=hub", "--checkpoint=best")
    card = ModelCard.load(tmp_path / "best" / "README.md")
    assert {one.metric_type: one.metric_value for one in card.data.eval_results} == {"abs_rel": 0.11}
    assert "- optimiser steps: 8" in card.text and card.data.license == "unknown"


def test_other_weights_for_the_hub(tmp_path, capsys):
    state = create_model("posecnn").state_dict()
    torch.save(state, tmp_path / "weights.pth")
    converts(capsys, tmp_path / "weights.pth", tmp_path / "file.safetensors")
    for source, target in (("weights.pth", "a"), ("file.safetensors", "b"), ("a", "c")):
        assert "posecnn" in converts(capsys, tmp_path / source, tmp_path / target, "--to", "hub")
        assert equal(PoseModel.from_pretrained(tmp_path / target).state_dict(), state)
        assert "Nothing is recorded." in (tmp_path / target / "README.md").read_text()
    converts(capsys, tmp_path / "a", tmp_path / "again.safetensors")
    assert converted_model(tmp_path / "again.safetensors") == ("posecnn", {})

    assert "folder: expected a new or empty folder" in fails(
        capsys, tmp_path / "weights.pth", tmp_path / "a", "--to=hub"
    )
    message = fails(capsys, tmp_path / "weights.pth", tmp_path / "x.safetensors", "--license=mit")
    assert "--license: expected with --to hub" in message
    message = fails(capsys, tmp_path / "weights.pth", tmp_path / "x.safetensors", "--checkpoint=best")
    assert "--checkpoint: expected a run folder" in message
    assert not (tmp_path / "x.safetensors").exists()


def test_a_converted_file_keeps_its_options(tmp_path, capsys):
    net = create_model("fastdepth_pruned", input_size=(96, 128))
    write_converted(tmp_path / "a.safetensors", *net.created_as, net.state_dict(), source="test")
    assert "input_size=(96, 128)" in converts(capsys, tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert converted_model(tmp_path / "b.safetensors") == ("fastdepth_pruned", {"input_size": (96, 128)})
