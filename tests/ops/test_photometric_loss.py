import numpy as np
import oracles
import pytest
import torch
from scenes import images

from mdepth_fast.ops import photometric_loss


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("size", [(1, 2, 2), (3, 3, 5), (2, 7, 13), (1, 33, 18)])
@pytest.mark.parametrize("ssim_weight", [0.85, 0.0, 1.0])
def test_against_loops(backend, size, ssim_weight):
    channels, height, width = size
    a, b = torch.rand(2, 2, channels, height, width, dtype=torch.float64)
    got = photometric_loss(a, b, ssim_weight=ssim_weight, backend=backend)
    want = [oracles.photometric_loss(x, y, ssim_weight) for x, y in zip(a.numpy(), b.numpy())]
    np.testing.assert_allclose(got[:, 0].numpy(), want, rtol=0, atol=1e-12)


def test_equal_images_cost_nothing_and_opposite_ones_at_most_one():
    a, _ = images(1, 9, 11, 1)
    assert photometric_loss(a, a).abs().max() < 1e-6
    b = torch.zeros_like(a)
    b[..., ::2, ::2] = 1
    assert photometric_loss(b, 1 - b).max() <= 1


def test_variance_does_not_cancel_on_a_flat_bright_image():
    """E[x^2] - E[x]^2 in float32 would be wrong by 1e-7 here, against a true variance of 1e-8."""
    a = 0.9 + 1e-4 * torch.randn(1, 1, 16, 16, dtype=torch.float64)
    b = 0.9 + 1e-4 * torch.randn(1, 1, 16, 16, dtype=torch.float64)
    exact = photometric_loss(a.float().double(), b.float().double(), ssim_weight=1.0, backend="reference")
    got = photometric_loss(a.float(), b.float(), ssim_weight=1.0, backend="cpu")
    assert (got - exact).abs().max() < 1e-7


def test_non_finite_pixels_stay_non_finite_where_they_are_and_nowhere_else():
    for value in (torch.nan, torch.inf, -torch.inf):
        a, b = torch.rand(2, 1, 3, 12, 40)
        b[0, 1, 5, 20] = value
        bad = ~torch.isfinite(photometric_loss(a, b, backend="cpu"))[0, 0]
        window = torch.zeros_like(bad)
        window[4:7, 19:22] = True
        assert torch.equal(bad, window)


def test_errors():
    a = torch.rand(2, 3, 8, 9)
    for wrong, error, message in [
        ((None, a), TypeError, r"^prediction: expected a tensor \(B, C, H, W\), got NoneType"),
        ((a.int(), a), TypeError, r"^prediction: expected a floating-point tensor, got torch.int32"),
        ((a[0], a), ValueError, r"^prediction: expected shape \(B, C, H, W\).*got \(3, 8, 9\)"),
        ((a, a[:1]), ValueError, r"^target: expected shape .*\(2, 3, 8, 9\), got \(1, 3, 8, 9\)"),
        ((a[:, :, :1], a[:, :, :1]), ValueError, r"^prediction: expected H and W of at least 2 .*got 1x9"),
        ((a[:, :0], a[:, :0]), ValueError, r"^prediction: expected at least 1 channel"),
        ((a, a.to("meta")), ValueError, r"^target: expected device cpu, where prediction is, got meta"),
    ]:
        with pytest.raises(error, match=message):
            photometric_loss(*wrong)
    with pytest.raises(ValueError, match=r"^ssim_weight: expected a number from 0 to 1, got 1.5"):
        photometric_loss(a, a, ssim_weight=1.5)
