import numpy as np
import oracles
import pytest
import torch

from mdepth_fast.ops import edge_aware_smoothness


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("size", [(1, 1, 2, 2), (2, 3, 5, 7), (3, 2, 33, 19), (1, 3, 70, 5)])
def test_against_loops(backend, normalize, size):
    batch, channels, height, width = size
    disparity = torch.rand(batch, 1, height, width, dtype=torch.float64) + 0.1
    image = torch.rand(batch, channels, height, width, dtype=torch.float64)
    got = edge_aware_smoothness(disparity, image, normalize=normalize, backend=backend)
    want = oracles.edge_aware_smoothness(disparity[:, 0].numpy(), image.numpy(), normalize)
    np.testing.assert_allclose(got.item(), want, rtol=1e-12)


def test_scale_of_the_disparity_does_not_matter():
    disparity, image = torch.rand(2, 1, 8, 9) + 0.1, torch.rand(2, 3, 8, 9)
    torch.testing.assert_close(edge_aware_smoothness(7 * disparity, image), edge_aware_smoothness(disparity, image))


def test_without_normalisation_it_is_linear_in_the_disparity():
    disparity, image = torch.rand(2, 1, 8, 9) - 0.5, torch.rand(2, 3, 8, 9)
    once, sevenfold = (edge_aware_smoothness(factor * disparity, image, normalize=False) for factor in (1, -7))
    torch.testing.assert_close(sevenfold, 7 * once)


def test_exponential_is_accurate_over_its_range():
    """Two columns a distance x apart in the image: the loss along x is exp(-x) times a constant."""
    x = torch.linspace(0, 100, 4001)
    image = torch.stack([torch.zeros_like(x), x], -1).view(4001, 1, 1, 2).repeat(1, 1, 2, 1)
    disparity = torch.tensor([1.0, 2.0]).repeat(4001, 1, 2, 1)
    got = torch.stack([edge_aware_smoothness(d, i) for d, i in zip(disparity.split(1), image.split(1))]).double()
    want = torch.exp(-x.double()) / (1.5 + 1e-7)
    normal = x < 87
    assert ((got - want).abs() / want)[normal].max() < 4e-7
    assert got[~normal].max() < 1.2e-38


def test_image_gets_no_gradient_and_nan_is_not_lost():
    disparity, image = torch.rand(1, 1, 6, 7).requires_grad_(), torch.rand(1, 3, 6, 7).requires_grad_()
    for backend in ("cpu", "reference"):
        (grad,) = torch.autograd.grad(
            edge_aware_smoothness(disparity, image, backend=backend), [image], allow_unused=True
        )
        assert grad is None
        for name in ("disparity", "image"):
            tensors = {"disparity": disparity.detach().clone(), "image": image.detach().clone()}
            tensors[name][0, 0, 3, 3] = torch.nan
            assert edge_aware_smoothness(**tensors, backend=backend).isnan()


def test_errors():
    disparity, image = torch.rand(2, 1, 6, 7), torch.rand(2, 3, 6, 7)
    for arguments, error, message in [
        ((disparity[:, 0], image), ValueError, r"^disparity: expected shape \(B, 1, H, W\)"),
        ((image, image), ValueError, r"^disparity: expected shape \(B, 1, H, W\) = \(any, 1, any, any\), got"),
        ((disparity, image[..., :5]), ValueError, r"^image: expected shape .*\(2, any, 6, 7\), got \(2, 3, 6, 5\)"),
        ((disparity[:, :, :1], image[:, :, :1]), ValueError, r"^disparity: expected H and W of at least 2, got 1x7"),
        ((disparity, "image"), TypeError, r"^image: expected a tensor .*, got str"),
    ]:
        with pytest.raises(error, match=message):
            edge_aware_smoothness(*arguments)
