import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import mdepth_fast.models
from mdepth_fast.models import (
    DPT,
    DepthAnythingV2,
    DepthModel,
    DPTGeometry,
    FlowModel,
    PoseModel,
    create_model,
    list_models,
    register_model,
    registry,
)

# What people use: none of these may go.
NAMES = [
    *(
        f"depth_anything_v2_{size}{scene}"
        for size in ("base", "large", "small")
        for scene in ("", "_indoor", "_outdoor")
    ),
    "dorn_resnet101_kitti",
    "dorn_resnet101_nyu",
    *(f"dpt_{size}{data}" for size in ("base", "hybrid", "large") for data in ("", "_kitti", "_nyu")),
    "eigen2014_kitti",
    "eigen2014_nyu",
    "fastdepth",
    "fastdepth_pruned",
    "fcrn_resnet50_deconv",
    "fcrn_resnet50_upconv",
    "fcrn_resnet50_upproj",
    "flownet_s",
    *(f"lite_mono{size}" for size in ("", "_8m", "_small", "_tiny")),
    "monodepth2_resnet18",
    "monodepth2_resnet50",
    "posecnn",
    "posenet_resnet18",
    "posenet_resnet50",
    *(f"{system}{net}" for system in ("sfmlearner", "sfmlearner_pytorch", "vid2depth") for net in ("", "_pose")),
]


def test_names():
    assert set(NAMES) <= set(list_models())
    assert list_models() == sorted(list_models())
    assert list_models("posenet*") == ["posenet_resnet18", "posenet_resnet50", "posenet_shared"]
    assert list_models("nothing*") == []


@pytest.mark.parametrize("name", [name for name in list_models() if not name.startswith("tiny_")])
def test_every_name_creates_its_kind(name):
    with torch.device("meta"):
        model = create_model(name)
    if name.startswith(("pose", "flow")) or name.endswith("_pose"):
        kind = FlowModel if name.startswith("flow") else PoseModel
    else:
        kind = DepthModel
    assert isinstance(model, kind)
    assert model.created_as == (name, {})


def test_options_reach_the_constructor():
    model = create_model("monodepth2_resnet18", min_depth=1.8, max_depth=8.0, unit="m", scales=(0,))
    assert (model.min_depth, model.max_depth, model.unit, model.scales) == (1.8, 8.0, "m", (0,))


def test_unknown_name_lists_the_nearest():
    with pytest.raises(ValueError, match=r"'monodepth2_resnet19'.*monodepth2_resnet18"):
        create_model("monodepth2_resnet19")
    with pytest.raises(ValueError, match=r"'zzz'.*posecnn"):
        create_model("zzz")


def test_register(monkeypatch):
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    marker = create_model("posecnn")
    register_model("mine", lambda: marker)
    assert create_model("mine") is marker
    with pytest.raises(ValueError, match=r"'mine' is registered already"):
        register_model("mine", lambda: marker)


def test_every_file_that_registers_a_model_is_imported():
    """In a process that imports the package alone, as other tests import model files themselves."""
    folder = Path(mdepth_fast.models.__file__).parent
    files = {path.stem for path in folder.glob("*.py") if "\nregister_model(" in path.read_text().replace("    ", "")}
    assert {"dpt", "monodepth2"} <= files
    script = "import sys, mdepth_fast.models; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert files <= {name.removeprefix("mdepth_fast.models.") for name in output.split()}


def test_the_names_that_read_files_are_there_on_demand():
    import mdepth_fast.weights

    assert mdepth_fast.models.load_checkpoint is mdepth_fast.weights.load_checkpoint
    assert mdepth_fast.models.load_encoder_weights is mdepth_fast.weights.load_encoder_weights
    for module in (mdepth_fast.models, mdepth_fast.weights):
        assert all(callable(getattr(module, name)) for name in module.__all__)
        with pytest.raises(AttributeError, match=f"'{module.__name__}' has no attribute 'nothing'"):
            module.nothing  # noqa: B018


def small(name, **options):
    return partial(create_model, name, **options)


NETS = {
    "depth_anything": partial(
        DepthAnythingV2, DPTGeometry(24, 4, 2, (0, 1, 2, 3), (8, 8, 8, 8), features=8), max_depth=20.0
    ),
    "dpt": partial(DPT, DPTGeometry(48, 4, 3, (0, 1, 2, 3), (12, 24, 36, 48), features=24)),
    "eigen2014_nyu": small("eigen2014_nyu", hidden=16),
    "flownet_s": small("flownet_s", width=8),
    "monodepth_resnet50": small("monodepth_resnet50", base=8),
    "monodepth_vgg": small("monodepth_vgg", base=8),
    **{name: small(name, width_multiplier=0.125) for name in ("sfmlearner", "vid2depth")},
    **{name: small(name, width_multiplier=0.125) for name in ("sfmlearner_pose", "vid2depth_pose")},
    **{name: small(name) for name in ("fcrn_resnet50_upproj", "lite_mono_tiny", "monodepth2_resnet18")},
    **{name: small(name) for name in ("posecnn", "posenet_resnet18")},
}


@pytest.mark.parametrize("name", NETS)
def test_depth_flow_and_motion_are_float32_under_autocast(name):
    """Features are bfloat16 there; its eight digits are too few for numbers of which pixels are computed."""
    torch.manual_seed(0)
    model = NETS[name]().eval()
    size = {"depth_anything": (126, 126), "eigen2014_nyu": (228, 304)}.get(name, (128, 128))
    inputs = [torch.rand(2, 3, *size) for _ in range(1 + isinstance(model, (PoseModel, FlowModel)))]
    if name.endswith("_pose"):
        inputs = [torch.rand(2, 3, 3, 64, 64)]

    def numbers():
        outputs = model(*inputs)
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        return [output for output in outputs if isinstance(output, torch.Tensor)]

    with torch.no_grad():
        expected = numbers()
        with torch.autocast("cpu", torch.bfloat16):
            found = numbers()
    assert len(found) == len(expected) > 0
    for output, value in zip(found, expected, strict=True):
        assert output.dtype == torch.float32
        assert not torch.equal(output, output.bfloat16().float())
        torch.testing.assert_close(output, value, rtol=0.1, atol=0.05 * value.abs().max().item())
