import numpy as np
import oracles
import pytest
import torch

from mdepth_fast.ops import ordinal_decode

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])


@BACKENDS
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 5, 3, 7), (1, 80, 9, 11), (2, 3, 47, 53)])
def test_against_loops(backend, size):
    batch, bins, height, width = size
    logits = torch.randn(batch, 2 * bins, height, width, dtype=torch.float64)
    thresholds = torch.rand(bins + 1, dtype=torch.float64).add(0.01).cumsum(0)
    depth, label = ordinal_decode(logits, thresholds, backend=backend)
    assert depth.shape == label.shape == (batch, 1, height, width) and label.dtype == torch.int64
    for b in range(batch):
        want_depth, want_label = oracles.ordinal_decode(logits[b].numpy(), thresholds.numpy())
        np.testing.assert_array_equal(label[b, 0].numpy(), want_label)
        np.testing.assert_allclose(depth[b, 0].numpy(), want_depth, rtol=1e-15)


@BACKENDS
def test_the_middle_of_every_bin_comes_back(backend):
    """K answers "beyond" give label K, whose depth is that of the last bin."""
    bins = 12
    thresholds = torch.exp(torch.linspace(0.0, 4.0, bins + 1))
    label = torch.arange(bins + 1).view(1, 1, 1, -1)
    beyond = (torch.arange(bins).view(1, -1, 1, 1) < label).float()
    logits = torch.stack([1 - beyond, beyond], 2).flatten(1, 2)
    depth, got = ordinal_decode(logits, thresholds, backend=backend)
    assert torch.equal(got, label)
    assert torch.equal(depth.flatten()[:-1], (thresholds[:-1] + thresholds[1:]) / 2)
    assert depth.flatten()[-1] == depth.flatten()[-2]


@BACKENDS
def test_probability_of_one_half_is_not_beyond_and_infinities_are_sure(backend):
    logits = torch.tensor([[2.0, 2.0], [0.0, torch.inf], [torch.inf, 0.0], [-torch.inf, 0.0], [0.0, -torch.inf]])
    _, label = ordinal_decode(logits.view(5, 2, 1, 1), torch.tensor([1.0, 2.0]), backend=backend)
    assert label.flatten().tolist() == [0, 1, 0, 1, 0]


@BACKENDS
@pytest.mark.parametrize("channel", [0, 3, 9])
def test_nan_is_not_lost(backend, channel):
    logits = torch.randn(1, 10, 4, 40)
    logits[0, channel, 2, 17] = torch.nan
    depth, label = ordinal_decode(logits, torch.arange(1.0, 7.0), backend=backend)
    assert depth[0, 0, 2, 17].isnan() and depth.isnan().sum() == 1
    assert label.min() >= 0 and label.max() <= 5


@BACKENDS
def test_no_gradient(backend):
    logits, thresholds = torch.randn(1, 4, 3, 3).requires_grad_(), torch.arange(1.0, 4.0).requires_grad_()
    assert not any(out.requires_grad for out in ordinal_decode(logits, thresholds, backend=backend))


def test_errors():
    logits, thresholds = torch.rand(2, 8, 3, 4), torch.arange(1.0, 6.0)
    for arguments, error, message in [
        ((logits[0], thresholds), ValueError, r"^logits: expected shape \(B, 2K, H, W\)"),
        ((logits[:, :7], thresholds), ValueError, r"^logits: expected an even number of channels.* got 7"),
        ((logits[:, :0], thresholds), ValueError, r"^logits: expected an even number of channels.* got 0"),
        ((logits, thresholds[:-1]), ValueError, r"^thresholds: expected shape \(K \+ 1,\) = \(5\), got \(4,\)"),
        ((logits, thresholds.flip(0)), ValueError, r"^thresholds: expected increasing numbers, got \[5.0, 4.0"),
        ((logits, torch.tensor([1.0, 2, 2, 3, 4])), ValueError, r"^thresholds: expected increasing numbers"),
        ((logits, torch.tensor([1.0, 2, torch.nan, 3, 4])), ValueError, r"^thresholds: expected increasing numbers"),
        ((logits, [1, 2, 3, 4, 5]), TypeError, r"^thresholds: expected a tensor \(K \+ 1,\), got list"),
        ((logits, thresholds.to("meta")), ValueError, r"^thresholds: expected device cpu, where logits is, got meta"),
    ]:
        with pytest.raises(error, match=message):
            ordinal_decode(*arguments)
