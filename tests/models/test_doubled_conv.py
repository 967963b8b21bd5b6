"""Doubling and convolving on the small map against PyTorch's two operations."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mdepth_fast.models import doubled_conv as module
from mdepth_fast.models.doubled_conv import doubled_conv


def plain(x, conv):
    return conv(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (7, 16), (16, 17), (33, 50)])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_equals_resizing_then_convolving(monkeypatch, size, bias):
    conv = nn.Conv2d(5, 3, 3, padding=1, bias=bias).double()
    x = torch.randn(2, 5, *size, dtype=torch.float64)
    expected = plain(x, conv)
    monkeypatch.setattr(F, "interpolate", None)  # the large map is not made
    for layout in (torch.contiguous_format, torch.channels_last):
        got = doubled_conv(x.contiguous(memory_format=layout), conv)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
        assert got.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_float32_is_no_further_from_float64_than_the_plain_way():
    conv, x = nn.Conv2d(64, 16, 3, padding=1), torch.randn(1, 64, 40, 56)
    exact = plain(x.double(), copy.deepcopy(conv).double())
    ours, theirs = ((f(x, conv) - exact).norm() for f in (doubled_conv, plain))
    assert ours <= theirs


def test_gradients_and_half_precision_take_the_plain_way(monkeypatch):
    conv, x = nn.Conv2d(4, 2, 3, padding=1), torch.randn(1, 4, 6, 8)
    monkeypatch.setattr(module, "_shifted", None)
    assert torch.equal(doubled_conv(x, conv), plain(x, conv))
    with torch.no_grad():
        assert torch.equal(doubled_conv(x.bfloat16(), conv.bfloat16()), plain(x.bfloat16(), conv.bfloat16()))


@torch.no_grad()
def test_empty_batch():
    assert doubled_conv(torch.rand(0, 4, 6, 8), nn.Conv2d(4, 2, 3, padding=1)).shape == (0, 2, 12, 16)
