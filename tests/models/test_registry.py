import pytest
import torch

from mdepth_fast.models import DepthModel, PoseModel, create_model, list_models, register_model, registry

NAMES = [
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
    "monodepth2_resnet18",
    "monodepth2_resnet50",
    "posecnn",
    "posenet_resnet18",
    "posenet_resnet50",
]


def test_names():
    assert [name for name in list_models() if not name.startswith("tiny_")] == NAMES  # other tests register tiny ones
    assert list_models("posenet*") == ["posenet_resnet18", "posenet_resnet50"]
    assert list_models("nothing*") == []


@pytest.mark.parametrize("name", NAMES)
def test_every_name_creates_its_kind(name):
    with torch.device("meta"):
        model = create_model(name)
    assert isinstance(model, PoseModel if name.startswith("pose") else DepthModel)
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
