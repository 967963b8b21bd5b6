"""Entry points of `torch.hub`, from a folder."""

import runpy
from pathlib import Path

import torch

from mdepth_fast.models import create_model, list_models

ROOT = Path(__file__).parents[1]


def load(name, *arguments, **options):
    return torch.hub.load(str(ROOT), name, *arguments, source="local", trust_repo=True, **options)


def test_every_model_is_an_entry():
    hubconf = runpy.run_path(str(ROOT / "hubconf.py"))
    entries = {name for name, value in hubconf.items() if callable(value) and not name.startswith("_")}
    assert entries == {"load", *list_models()}
    assert hubconf["fastdepth"].__doc__.startswith("The network 'fastdepth' in eval mode.")


def test_a_network_with_options_and_weights(tmp_path):
    model = create_model("flownet_s", width=8)
    model.save_pretrained(tmp_path)
    net = load("flownet_s", str(tmp_path), width=8)
    assert not net.training and all(
        torch.equal(a, b) for a, b in zip(net.state_dict().values(), model.state_dict().values(), strict=True)
    )
    depth = create_model("fastdepth", encoder_channels=(8,) * 14, decoder_channels=(8,) * 5)
    depth.save_pretrained(tmp_path / "depth")
    assert load("load", str(tmp_path / "depth")).predict(torch.rand(3, 40, 50)).depth.shape == (1, 1, 40, 50)
