"""3x3 convolutions by minimal filtering against PyTorch's."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mdepth_fast.models.winograd import WinogradConv2d


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 9), (24, 38), (50, 130)])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_equals_the_convolution(monkeypatch, size, bias):
    conv = nn.Conv2d(5, 7, 3, padding=1, bias=bias).double()
    x = torch.randn(2, 5, *size, dtype=torch.float64)
    expected, fast = conv(x), WinogradConv2d(conv)
    monkeypatch.setattr(F, "conv2d", None)
    monkeypatch.setattr(nn.Conv2d, "forward", None)
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.testing.assert_close(fast(x.contiguous(memory_format=layout)), expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_rounding():
    """Of float32, on activations after a ReLU: some 1e-6 of the output's deviation, a direct convolution has 2e-7."""
    conv, x = nn.Conv2d(256, 32, 3, padding=1, bias=False), torch.randn(1, 256, 24, 24).relu()
    expected = copy.deepcopy(conv).double()(x.double())
    error = (WinogradConv2d(conv)(x) - expected) / expected.std()
    assert error.square().mean().sqrt() < 2e-6


def test_parameters_are_shared_and_other_uses_are_the_convolution():
    conv, x = nn.Conv2d(4, 3, 3, padding=1), torch.randn(1, 4, 8, 8)
    fast = WinogradConv2d(conv)
    assert fast.weight is conv.weight and fast.bias is conv.bias
    assert fast.state_dict().keys() == conv.state_dict().keys()
    assert torch.equal(fast(x), conv(x)) and fast(x).requires_grad
    with torch.no_grad():
        half = fast.bfloat16()(x.bfloat16())
        assert torch.equal(half, conv.bfloat16()(x.bfloat16()))


@torch.no_grad()
def test_loaded_weights_take_effect():
    other, x = nn.Conv2d(4, 3, 3, padding=1), torch.randn(1, 4, 8, 8)
    fast = WinogradConv2d(nn.Conv2d(4, 3, 3, padding=1))
    nn.Sequential(fast).load_state_dict({f"0.{key}": value for key, value in other.state_dict().items()})
    torch.testing.assert_close(fast(x), other(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 3, 1),
        nn.Conv2d(4, 3, 3),
        nn.Conv2d(4, 3, 3, 2, 1),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"),
        nn.Linear(3, 3),
    ],
)
def test_only_the_common_convolution(conv):
    with pytest.raises(ValueError, match="conv: expected 3x3, stride 1, padding 1, one group, got"):
        WinogradConv2d(conv)
