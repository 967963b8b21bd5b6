"""Lite-Mono: published counts and keys, and the parts that have closed forms."""

import math

import pytest
import torch
from torch import nn

from mdepth_fast.models import create_model, load_checkpoint
from mdepth_fast.models.lite_mono import _Attention, _Dilated, _Position


@pytest.mark.parametrize(
    ("name", "millions"),
    [("lite_mono", 3.1), ("lite_mono_small", 2.5), ("lite_mono_tiny", 2.2), ("lite_mono_8m", 8.7)],
)
def test_as_many_parameters_as_published(name, millions):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.08)


def test_maps_at_three_scales():
    model = create_model("lite_mono_tiny", drop_path=0.0).train()
    maps = model(torch.rand(2, 3, 64, 96))
    assert [tuple(one.shape) for one in maps] == [(2, 1, 64, 96), (2, 1, 32, 48), (2, 1, 16, 24)]
    sum(one.mean() for one in maps).backward()
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert without == set()


def test_published_folder(tmp_path):
    """Every key as the published files have it, with what a profiler and the training script left in them."""
    model = create_model("lite_mono_tiny")
    files = model.publish()
    encoder, depth = files["encoder.pth"], files["depth.pth"]
    assert encoder["downsample_layers.0.0.conv.weight"].shape == (32, 3, 3, 3)
    assert encoder["stem2.0.conv.weight"].shape == (32, 35, 3, 3)
    assert encoder["downsample_layers.2.0.conv.weight"].shape == (128, 131, 3, 3)
    assert encoder["stages.0.3.pos_embd.token_projection.weight"].shape == (32, 64, 1, 1)
    assert encoder["stages.2.6.xca.temperature"].shape == (8, 1, 1)
    assert encoder["stages.2.0.ddwconv.conv.weight"].shape == (128, 1, 3, 3)
    assert {
        "stages.2.0.norm.bias",
        "stages.2.0.bn1.running_var",
        "stages.1.3.gamma_xca",
        "stages.1.3.norm_xca.bias",
    } <= (encoder.keys())
    assert "stages.1.3.pos_embd.token_projection.weight" not in encoder
    assert depth["decoder.0.conv.conv.weight"].shape == (64, 128, 3, 3)
    assert depth["decoder.1.conv.conv.weight"].shape == (64, 128, 3, 3)
    assert depth["decoder.5.conv.conv.weight"].shape == (16, 16, 3, 3)
    assert [depth[f"decoder.{n}.conv.weight"].shape[1] for n in (6, 7, 8)] == [16, 32, 64]
    left = {"total_ops": torch.zeros(1), "stages.0.0.total_params": torch.zeros(1)}
    size = {"height": 192, "width": 640, "use_stereo": False}
    torch.save({**encoder, **left, **size}, tmp_path / "encoder.pth")
    torch.save({**depth, "total_ops": torch.zeros(1)}, tmp_path / "depth.pth")
    other = create_model("lite_mono_tiny")
    load_checkpoint(other, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))
    assert other.input_size == (192, 640)


def test_dilations():
    model = create_model("lite_mono", dilation=5)
    steps = [
        [block.conv.dilation[0] for block in stage if isinstance(block, _Dilated)] for stage in model.encoder.stages
    ]
    assert steps == [[1, 2, 5], [1, 2, 5], [1, 2, 5, 1, 2, 5, 2, 4, 10]]


def test_attention_is_between_channels():
    """Permuting the positions permutes the result; one head of one channel passes its values on."""
    torch.manual_seed(0)
    attention = _Attention(16)
    x = torch.randn(2, 5, 16)
    order = torch.randperm(5)
    torch.testing.assert_close(attention(x)[:, order], attention(x[:, order]))
    alone = _Attention(8)
    values = nn.functional.linear(x[..., :8], alone.qkv.weight[16:], alone.qkv.bias[16:])
    torch.testing.assert_close(alone(x[..., :8]), alone.proj(values))


def test_positions():
    position = _Position(64)
    nn.init.dirac_(position.projection.weight)
    nn.init.zeros_(position.projection.bias)
    found = position(3, 4)[0]
    for k, (y, x) in ((0, (1, 2)), (5, (2, 0))):
        rate = 10000 ** (-2 * k / 32)
        assert found[2 * k, y, x].item() == pytest.approx(math.sin(2 * math.pi * (y + 1) / 3 * rate), abs=1e-5)
        assert found[32 + 2 * k + 1, y, x].item() == pytest.approx(math.cos(2 * math.pi * (x + 1) / 4 * rate), abs=1e-5)


def test_drop_path_keeps_the_mean():
    torch.manual_seed(0)
    block = _Dilated(8, 1, 0.5).train()
    nn.init.ones_(block.bottleneck.gamma)
    x = torch.randn(1, 8, 4, 4).expand(2000, -1, -1, -1)
    block.bn.eval()
    change = block(x) - x
    dropped = (change == 0).flatten(1).all(1)
    assert 0.45 < dropped.float().mean() < 0.55
    torch.testing.assert_close(change[~dropped][0], 2 * (block.eval()(x[:1]) - x[:1])[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": (0, 3)}, "scales: expected"),
        ({"widths": (48, 80)}, "widths: expected three multiples of 8"),
        ({"depths": (4, 4, 8)}, "depths: expected"),
        ({"drop_path": 1.0}, "drop_path: expected"),
    ],
)
def test_bad_options(options, message):
    from mdepth_fast.models import LiteMono

    with pytest.raises(ValueError, match=message):
        LiteMono(**options)
