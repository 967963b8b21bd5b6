"""Files for other runtimes: what they compute, what they contain, and what is refused."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mdepth_fast.cli import main
from mdepth_fast.inference import export
from mdepth_fast.models import (
    DORN,
    DepthAnythingV2,
    DisparityModel,
    DPTGeometry,
    FlowNetS,
    MonodepthVGG,
    PoseExpNet,
    create_model,
    list_models,
)

ROOT = Path(__file__).parents[2]
module: Any = sys.modules["mdepth_fast.inference.export"]  # the package's attribute is the function

sys.path.insert(0, str(ROOT / "benches"))
import export_zoo  # noqa: E402

SIZE = (32, 64)


class Tiny(DisparityModel):
    """A convolution with a batch norm; its depth comes from a fused op."""

    def __init__(self, unit: str | None = "m", input_size: tuple[int, int] | None = SIZE) -> None:
        super().__init__(min_depth=0.5, max_depth=20.0, scales=(0,), unit=unit, input_size=input_size)
        self.conv, self.norm = nn.Conv2d(3, 1, 3, padding=1), nn.BatchNorm2d(1)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.norm(self.conv(images)).sigmoid()]


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(0)
    net = Tiny()
    done = export(net, tmp_path_factory.mktemp("onnx") / "fastdepth.onnx", weights="a test")
    return net, done


def test_an_onnx_file_gives_what_predict_gives_at_any_size(onnx_file: Any) -> None:
    net, done = onnx_file
    assert 0 <= done.difference <= 1e-5 and done.spread > 0.05 and net.training
    session = onnxruntime.InferenceSession(done.path, providers=["CPUExecutionProvider"])
    assert [one.shape for one in session.get_inputs()] == [["batch", 3, "height", "width"]]
    for shape in ((1, 3, 7, 5), (5, 3, 32, 64), (2, 3, 211, 97)):
        images = torch.rand(shape)
        (depth,) = session.run(["depth"], {"images": images.numpy()})
        expected = net.predict(images, size=SIZE).depth
        torch.testing.assert_close(torch.from_numpy(depth), expected, rtol=1e-5, atol=0)


def test_an_onnx_file_holds_standard_operations_and_says_what_it_is(onnx_file: Any) -> None:
    _, done = onnx_file
    model = onnx.load(done.path)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    assert "Resize" in {node.op_type for node in model.graph.node}
    about = {entry.key.removeprefix("mdepth_fast."): entry.value for entry in model.metadata_props}
    expected = {"kind": "metric", "unit": "m", "input_size": "32x64", "model": "Tiny", "weights": "a test"}
    assert expected.items() <= about.items() and "version" in about
    assert str(ROOT).encode() not in done.path.read_bytes()


def test_the_lines_in_the_docs(onnx_file: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    (tmp_path / "fastdepth.onnx").write_bytes(onnx_file[1].path.read_bytes())
    Image.fromarray(np.random.randint(0, 255, (30, 50, 3), np.uint8)).save(tmp_path / "photo.jpg")  # noqa: NPY002
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out == "(1, 1, 30, 50) metric m\n"


def test_two_images_to_flow_of_a_fixed_size(tmp_path: Path) -> None:
    net = FlowNetS(width=4)
    done = export(net, tmp_path / "flow.onnx", size=(64, 64), fixed_size=True)
    session = onnxruntime.InferenceSession(done.path, providers=["CPUExecutionProvider"])
    assert [one.shape for one in session.get_inputs()] == [["batch", 3, 64, 64]] * 2
    first, second = torch.rand(2, 3, 3, 64, 64)
    (flow,) = session.run(["flow"], {"first": first.numpy(), "second": second.numpy()})
    torch.testing.assert_close(torch.from_numpy(flow), net.predict(first, second).flow, rtol=1e-4, atol=1e-4)


def dorn() -> DORN:
    return DORN(50, window=(33, 49), K=8, width=4, pool=4, rates=(1, 2))


CASES = {
    "sliding windows": (dorn, {"size": (33, 80)}, ("images",), ("depth",)),
    "camera": (
        lambda: MonodepthVGG(base=2, focal=0.6, baseline=0.5),
        {"intrinsics": True},
        ("images", "K"),
        ("depth",),
    ),
    "tokens": (
        lambda: DepthAnythingV2(DPTGeometry(24, 4, 2, (0, 1, 2, 3), (8, 8, 8, 8), features=8), target_size=(70, 98)),
        {"size": None},
        ("images",),
        ("inverse_depth",),
    ),
    "frames": (lambda: PoseExpNet(width_multiplier=0.2), {"size": (32, 64)}, ("frames",), ("vectors",)),
}


@pytest.mark.parametrize("case", CASES)
def test_torch_export(case: str, tmp_path: Path) -> None:
    make, options, inputs, outputs = CASES[case]
    net = make()
    done = export(net, tmp_path / "net.pt2", "torch-export", **{"size": (128, 128), **options})  # type: ignore[arg-type]
    assert (done.inputs, done.outputs) == (inputs, outputs) and done.difference <= 1e-5 and done.spread > 0.01
    files = {"mdepth_fast.json": ""}
    torch.export.load(done.path, extra_files=files)
    assert json.loads(files["mdepth_fast.json"]) == done.metadata


def test_undecided_thresholds_are_few() -> None:
    net = dorn().eval()
    images = torch.rand(2, 3, 33, 49)
    with torch.no_grad():
        bias = net.scene.classify.bias.clone()
        low, high = module._ordinal_bounds(net, lambda: net.predict(images).depth)
    depth = net.predict(images).depth
    assert (low <= depth).all() and (depth <= high).all() and (low == high).double().mean() > 0.9
    assert torch.equal(net.scene.classify.bias, bias)


@pytest.mark.parametrize(
    "change", [lambda y: y * (1 + 2e-4), lambda y: y.where(y > y.min(), torch.nan), lambda y: y[:1]]
)
def test_a_file_that_differs_is_not_left(change: Any, tmp_path: Path, monkeypatch: Any) -> None:
    writer = module._WRITERS["torch-export"]

    def wrong(*arguments: Any) -> Any:
        run = writer(*arguments)
        return lambda inputs: [change(one) for one in run(inputs)]

    monkeypatch.setitem(module._WRITERS, "torch-export", wrong)
    with pytest.raises(ValueError, match=r"differs from PyTorch by (0.0002|nan)|as PyTorch's, the file gives"):
        export(Tiny(), tmp_path / "net.pt2", "torch-export")
    assert not list(tmp_path.iterdir())


def test_what_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    def refused(
        error: type[Exception], words: str, *arguments: Any, net: nn.Module | None = None, **options: Any
    ) -> None:
        with pytest.raises(error, match=words):
            export(Tiny() if net is None else net, *arguments, **options)  # type: ignore[arg-type]

    path = tmp_path / "net.onnx"
    refused(ValueError, "target: expected one of onnx, torch-export, aoti, got 'tflite'", path, "tflite")
    refused(ValueError, r"path: expected a file named \*.pt2 for aoti, got .*net.onnx", path, "aoti")
    refused(ValueError, "opset: expected at least 18.* got 17", path, opset=17)
    refused(ValueError, "size: this network was made for no one size", path, net=Tiny(input_size=None))
    refused(ValueError, "size: expected positive height and width, got 0x64", path, size=(0, 64))
    refused(ValueError, "net: expected parameters in float32", path, net=Tiny().half())
    refused(ValueError, "intrinsics: Tiny does not take K", path, intrinsics=True)
    refused(
        ValueError,
        "posenet_shared has no form of its own: it reads the features",
        path,
        net=create_model("posenet_shared"),
    )
    constant = Tiny()
    nn.init.zeros_(constant.conv.weight)
    refused(
        ValueError,
        "depth: the network gives one value everywhere",
        path.with_suffix(".pt2"),
        "torch-export",
        net=constant,
    )
    (tmp_path / "folder.onnx").mkdir()
    refused(IsADirectoryError, "folder.onnx: expected a file, it is a folder", tmp_path / "folder.onnx")
    (tmp_path / "file").touch()
    refused(NotADirectoryError, "cannot be written, .*file is a file", tmp_path / "file" / "net.onnx")
    monkeypatch.setattr(module.os, "access", lambda *arguments: False)
    refused(PermissionError, "net.onnx: cannot be written, no permission for the folder", path)
    monkeypatch.undo()
    monkeypatch.setattr(module, "_LARGEST_ONNX", 10)
    refused(ValueError, "target: a file of ONNX holds 2 GiB, the weights are .* use torch-export", path)
    monkeypatch.undo()
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else True)
    refused(ModuleNotFoundError, r'onnxscript is missing: pip install "mdepth-fast\[export\]"', path)
    monkeypatch.undo()
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    with torch._inductor.config.patch({"cpp.cxx": (str(tmp_path / "no-compiler"),)}):
        refused(ValueError, "target: aoti needs a C.. compiler, and there is none", path.with_suffix(".pt2"), "aoti")
    assert {one.name for one in tmp_path.iterdir()} == {"folder.onnx", "file"}


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    def full(*arguments: Any) -> Any:
        raise RuntimeError("[enforce fail at inline_container.cc:672] PytorchStreamWriter failed writing file data/0")

    monkeypatch.setitem(module._WRITERS, "torch-export", full)
    with pytest.raises(OSError, match=r"net.pt2: cannot be written: the disk is full"):
        export(Tiny(), tmp_path / "net.pt2", "torch-export")
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = {
        "model: posecnn is the name of a network, expected its weights": ["posecnn", "--to", "onnx"],
        "nothing/here: no such checkpoint, run folder or file": ["nothing/here", "--to", "onnx"],
        "no model is called 'fastdeth'; did you mean fastdepth": ["fastdeth", "--random-weights", "--to", "onnx"],
        "size: this network was made for no one size": ["posecnn", "--random-weights", "--to", "torch-export"],
    }
    for line, words in wrong.items():
        assert main(["export", *words]) == 1
        error = capsys.readouterr().err
        assert line in error and error.count("\n") == 1
    assert main(["export", "posecnn", "--random-weights", "--to", "torch-export", "--size", "64x96"]) == 0
    assert (tmp_path / "posecnn.pt2").is_file() and len(list(tmp_path.iterdir())) == 1
    shown = capsys.readouterr().out
    assert "posecnn.pt2: posecnn, random weights, first, second -> axis_angle, translation, resized to 64x96\n" in shown
    assert re.search(r"largest relative difference from PyTorch \d", shown)


@pytest.mark.usefixtures("packaged_only")
def test_the_table_shows_the_result_file_and_every_network() -> None:
    record, text = export_zoo.read(), (ROOT / "docs" / "export.md").read_text()
    assert export_zoo.page(text, record) == text, "stale: run `python benches/export_zoo.py --table`"
    assert record["models"].keys() <= set(list_models()) and record["models"]
    assert all(f"| `{name}` |" in text for name in list_models())
    for name, results in record["models"].items():
        for one in results.values():
            if "reason" in one:
                assert name == "posenet_shared"
            else:
                assert one["difference"] <= record["tolerance"] == module.TOLERANCE and one["spread"] > 0.01, name
