"""Padding and standardisation of the hybrid's trunk; the whole trunk is compared with transformers' in test_dpt.py."""

import pytest
import torch
import torch.nn.functional as F

from mdepth_fast.models.resnetv2 import ResNetV2, StandardisedConv2d


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("size", [(8, 8), (9, 12), (13, 7)])
@torch.no_grad()
def test_same_padding(kernel, stride, size):
    """TensorFlow's SAME: ceil(n / stride) outputs, window i from i * stride - total // 2 on."""
    conv = StandardisedConv2d(2, 4, kernel, stride, eps=1e-5).double()
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    std, mean = torch.std_mean(conv.weight, (1, 2, 3), correction=0, keepdim=True)
    weight = (conv.weight - mean) / (std + 1e-5)
    outputs = [-(-n // stride) for n in size]
    before = [max((o - 1) * stride + kernel - n, 0) // 2 for o, n in zip(outputs, size, strict=True)]
    padded = F.pad(x, (kernel,) * 4)
    expected = torch.empty(1, 4, *outputs, dtype=torch.float64)
    for i in range(outputs[0]):
        for j in range(outputs[1]):
            top, left = kernel + i * stride - before[0], kernel + j * stride - before[1]
            window = padded[0, :, top : top + kernel, left : left + kernel]
            expected[0, :, i, j] = (weight * window).sum((1, 2, 3))
    torch.testing.assert_close(conv(x), expected)


@torch.no_grad()
def test_standardised_filters_ignore_offset_and_scale():
    conv, x = StandardisedConv2d(3, 4, 3, eps=0.0), torch.randn(1, 3, 8, 8)
    expected = conv(x)
    conv.weight.mul_(5).add_(torch.randn(4, 1, 1, 1))
    torch.testing.assert_close(conv(x), expected, rtol=1e-3, atol=1e-3)


def test_maps():
    trunk = ResNetV2((1, 1, 1), 32).to("meta")
    maps = trunk(torch.rand(1, 3, 64, 96, device="meta"))
    assert [m.shape for m in maps] == [(1, 128, 16, 24), (1, 256, 8, 12), (1, 512, 4, 6)]
    assert trunk.channels == (128, 256, 512)
