"""Engines: the numbers of PyTorch, one file for a size, what is refused, and which one `auto` takes."""

import copy
import importlib.metadata
import importlib.util
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from mdepth_fast.cli import main
from mdepth_fast.engines import DTYPES, ENGINES, OF_ONNX, engine, fastest, runtimes
from mdepth_fast.files import cache_folder
from mdepth_fast.models import Model, create_model

SMALL = {"encoder_channels": (8,) * 14, "decoder_channels": (8,) * 5, "input_size": (32, 64)}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One for all tests, as a file takes seconds."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def in_cache(cache, monkeypatch):
    monkeypatch.setenv("MDEPTH_CACHE", str(cache))
    assert cache_folder() == cache


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = create_model("fastdepth", **SMALL).eval().requires_grad_(False)
    net.decoder[-1].get_parameter("0.weight").abs_()  # or the ReLU behind it may leave nothing
    return net


@pytest.fixture
def no_units(monkeypatch):
    monkeypatch.setattr(runtimes, "_instructions", lambda: "avx2")


@pytest.mark.parametrize("name", OF_ONNX)
def test_the_numbers_of_pytorch_from_one_file(net, name, cache, monkeypatch):
    if name == "openvino" and importlib.util.find_spec(name) is None:
        pytest.skip("openvino: not installed, an extra")
    fast = net.optimize_for_inference(engine=name)
    assert type(fast) is type(net) and fast.runs_on == (name, "float32")
    images = torch.rand(3, 3, 50, 70)
    for batch in (images, images[:1], images[:0]):
        torch.testing.assert_close(fast.predict(batch).depth, net.predict(batch).depth, rtol=1e-4, atol=1e-6)
    small = torch.rand(2, 3, 32, 64)
    torch.testing.assert_close(fast(small), net(small), rtol=1e-4, atol=1e-6)
    (path,) = (cache / "engines").iterdir()
    assert re.fullmatch(r"fastdepth-32x64-\w{20}\.onnx", path.name)

    # The copy of a copy, and another of the same weights, read that file; other weights do not.
    monkeypatch.setattr(engine, "write_onnx", None)
    for again in (copy.deepcopy(fast), net.optimize_for_inference(engine=name)):
        assert torch.equal(again.predict(images).depth, fast.predict(images).depth)
    other = copy.deepcopy(net)
    other.decoder[0].get_parameter("0.0.weight").mul_(1.5)
    with pytest.raises(ValueError, match=f"engine: {name} cannot take fastdepth: 'NoneType'"):
        other.optimize_for_inference(engine=name).predict(images)


def test_a_damaged_file_is_written_again_and_other_numbers_are_an_error(net, cache, monkeypatch):
    images = torch.rand(1, 3, 32, 64)
    want = net.optimize_for_inference(engine="onnxruntime").predict(images).depth
    (path,) = (cache / "engines").iterdir()
    kept = path.read_bytes()
    written = []  # without the seconds that a file takes
    monkeypatch.setattr(engine.Engine, "_write", lambda self, path, inputs: written.append(path.write_bytes(kept)))
    path.write_bytes(b"half a file")
    assert torch.equal(net.optimize_for_inference(engine="onnxruntime").predict(images).depth, want)
    assert written == [len(kept)]

    opened = engine.open_session

    def off(*arguments):
        session = opened(*arguments)
        return lambda inputs: [1.001 * value for value in session(inputs)]

    monkeypatch.setattr(engine, "open_session", off)
    with pytest.raises(ValueError, match=r"engine: onnxruntime differs from PyTorch by 0.001 in float32, more than"):
        net.optimize_for_inference(engine="onnxruntime").predict(images)
    assert not path.exists() and len(written) == 2
    path.write_bytes(kept)


def test_a_cache_that_others_fill(net, monkeypatch):
    images = torch.rand(1, 3, 32, 64)
    net.optimize_for_inference(engine="onnxruntime").predict(images)

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(engine.os, "utime", refuse)
    net.optimize_for_inference(engine="onnxruntime").predict(images)


def test_a_runtime_may_be_installed_under_another_name(monkeypatch):
    def version(name):
        if name != "onnxruntime-gpu":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"onnxruntime": ["onnxruntime-gpu"]})
    assert runtimes.versions(["onnxruntime", "onnx"]) == {"onnxruntime": "1.2", "onnx": "unknown"}


def test_bfloat16_of_pytorch(net, monkeypatch):
    monkeypatch.setattr(runtimes, "_instructions", lambda: "amx")  # any CPU can, if slowly
    images = torch.rand(1, 3, 32, 64)
    reduced = net.optimize_for_inference(engine="torch", dtype="bfloat16").predict(images).depth
    want = net.predict(images).depth
    assert reduced.dtype == torch.float32 and not torch.equal(reduced, want)
    assert ((reduced - want).abs() / want.mean()).mean() < 0.05


def test_bfloat16_of_openvino(net):
    for reason in (runtimes.why_not("openvino", "bfloat16"),):
        if reason:
            pytest.skip(f"openvino: {reason}")
    images = torch.rand(1, 3, 32, 64)
    reduced = net.optimize_for_inference(engine="openvino", dtype="bfloat16").predict(images).depth
    want = net.optimize_for_inference(engine="openvino").predict(images).depth
    assert not torch.equal(reduced, want) and ((reduced - want).abs() / want.mean()).mean() < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "tensorrt"}, "engine: expected one of auto, native, torch, onnxruntime, openvino, got 'tensorrt'"),
        ({"dtype": "float16"}, "dtype: expected one of auto, float32, bfloat16, got 'float16'"),
        ({"dtype": "bfloat16"}, "dtype: this CPU has no units for bfloat16 .*; take float32"),
        ({"engine": "torch", "dtype": "bfloat16"}, "dtype: this CPU has no units for bfloat16"),
        ({"engine": "onnxruntime", "dtype": "bfloat16"}, "engine: onnxruntime has no bfloat16 on a CPU; take openvino"),
    ],
)
def test_what_is_refused(net, options, message, no_units):
    with pytest.raises(ValueError, match=message):
        net.optimize_for_inference(**options)


def test_what_else_is_refused(net, monkeypatch):
    monkeypatch.setattr(runtimes, "_instructions", lambda: "amx")
    with pytest.raises(ValueError, match="dtype: the native kernels of fastdepth compute in float32; take openvino"):
        net.optimize_for_inference(dtype="bfloat16")
    assert net.optimize_for_inference(engine="auto", dtype="bfloat16").runs_on == ("torch", "bfloat16")
    with pytest.raises(ValueError, match="dtype: expected a network in float32, got FastDepth in float64"):
        copy.deepcopy(net).double().optimize_for_inference(engine="onnxruntime")
    with pytest.raises(ValueError, match="engine: onnxruntime cannot take posenet_shared, which reads the features"):
        create_model("posenet_shared").optimize_for_inference(engine="onnxruntime")
    fast = net.optimize_for_inference(engine="onnxruntime")
    with pytest.raises(ValueError, match="onnxruntime: expected images without gradient, it computes none"):
        fast(torch.rand(1, 3, 32, 64, requires_grad=True))
    with pytest.raises(ValueError, match=r"onnxruntime: expected images in float32 on the CPU, got torch.float64"):
        fast(torch.rand(1, 3, 32, 64).double())
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "openvino" else find(name))
    with pytest.raises(ValueError, match=r'engine: openvino is missing: pip install "mdepth-fast\[openvino\]"'):
        net.optimize_for_inference(engine="openvino")


def classes(base=Model):
    for one in base.__subclasses__():
        yield one
        yield from classes(one)


def test_every_network_has_the_method_that_an_engine_computes():
    assert all(callable(getattr(one, one.engine_method)) for one in classes())


def test_auto_takes_the_fastest_that_is_there_and_native_in_doubt(net, tmp_path, monkeypatch):
    table = tmp_path / "fastest.json"
    table.write_text("{}")
    monkeypatch.setattr(fastest, "TABLE", table)
    there = dict.fromkeys(ENGINES, True)
    assert fastest.fastest("A", "net", "float32", there) == "native"
    fastest.record("A", "net", "float32", {"torch": 1.0, "native": 1.5, "openvino": 3.0, "onnxruntime": 2.0})
    fastest.record("A", "slow", "float32", {"torch": 1.0, "native": 0.9})
    fastest.record("A", "even", "float32", {"torch": 1.03, "native": 1.0})
    assert fastest.fastest("A", "net", "float32", there) == "openvino"
    assert fastest.fastest("A", "net", "float32", {**there, "openvino": False}) == "onnxruntime"
    assert fastest.fastest("A", "slow", "float32", there) == "torch", "never slower than eager"
    for kind, model, dtype in (("B", "net", "float32"), ("A", "net", "bfloat16"), ("A", "even", "float32")):
        assert fastest.fastest(kind, model, dtype, there) == "native"
    with pytest.raises(ValueError, match="speeds: expected some of native, "):
        fastest.record("A", "net", "float32", {"tensorrt": 1.0})

    assert net.optimize_for_inference(engine="auto").runs_on == ("native", "float32")
    fastest.record(runtimes.machine_kind(), "fastdepth", "float32", {"native": 1.0, "onnxruntime": 2.0})
    assert net.optimize_for_inference(engine="auto").runs_on == ("onnxruntime", "float32")
    assert net.optimize_for_inference().runs_on == ("native", "float32"), "as ever"


def test_the_table_says_nothing_unknown():
    for models in json.loads(fastest.TABLE.read_text()).values():
        for dtypes in models.values():
            assert dtypes.keys() <= {*DTYPES} and all(speeds.keys() <= {*ENGINES} for speeds in dtypes.values())


def test_predict(net, tmp_path, capsys, no_units):
    net.save_pretrained(tmp_path / "net")
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "photo.png")
    words = ["predict", str(tmp_path / "net"), str(tmp_path / "photo.png"), "--format=npy", "--no-color"]
    words += [f"--output={tmp_path / 'out'}", "--device=cpu"]
    assert main([*words, "--engine=onnxruntime"]) == 0
    (path,) = (tmp_path / "out").rglob("*.npy")
    want = net.predict(torch.from_numpy(image).permute(2, 0, 1).float() / 255).depth[0, 0]
    np.testing.assert_allclose(np.load(path), want, rtol=1e-4, atol=1e-6)
    capsys.readouterr()
    for more, message in (
        (["--engine=torch"], "predicted with --engine onnxruntime, not torch"),
        (["--precision=bfloat16"], "dtype: this CPU has no units for bfloat16"),
        (["--engine=openvino", "--half"], "--half: expected it without --engine openvino"),
        (["--engine=torch", "--optimize"], "--optimize: is --engine native, expected it without --engine torch"),
    ):
        assert main([*words, *more]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
