"""Losses of rectified pairs against loops in float64, closed forms, and the symmetry of a pair."""

import numpy as np
import pytest
import torch
from scenes import images, relative_error
from torch import Tensor
from torch.autograd import grad, gradcheck

from mdepth_fast.losses import GargLoss, LeftRightLoss


def pair(batch: int = 2, height: int = 16, width: int = 24) -> tuple[list[Tensor], Tensor, Tensor]:
    """Two scales of disparities around 0.1, and two images."""
    left, others = images(batch, height, width, 1, torch.float64, torch.Generator().manual_seed(0))
    maps = [0.05 + 0.1 * torch.rand(batch, 2, height >> s, width >> s, dtype=torch.float64) for s in range(2)]
    return [one.requires_grad_() for one in maps], left, others[:, 0]


def read(row: np.ndarray, x: float) -> float:
    """A row at x, linear between pixels, the border's value outside."""
    x = min(max(x, 0.0), len(row) - 1.0)
    first = min(int(x), len(row) - 2)
    return row[first] + (x - first) * (row[first + 1] - row[first])


def oracle(maps: list[Tensor], left: Tensor, right: Tensor, ssim_weight: float, smoothness: float, lr: float) -> float:
    """The objective by loops over pixels."""
    total = 0.0
    levels = [[image.numpy() for image in (left, right)]]
    for _ in maps[1:]:
        b, c, h, w = levels[-1][0].shape
        levels.append([image.reshape(b, c, h // 2, 2, w // 2, 2).mean((3, 5)) for image in levels[-1]])
    for s, (one, both) in enumerate(zip(maps, levels)):
        disparity = one.detach().numpy()
        for side, sign in ((0, -1), (1, 1)):
            image, other = both[side], both[1 - side]
            own, opposite = disparity[:, side], disparity[:, 1 - side]
            b, c, h, w = image.shape
            warped, seen = np.zeros_like(image), np.zeros_like(own)
            for n, y, x in np.ndindex(b, h, w):
                at = x + sign * own[n, y, x] * w
                warped[n, :, y, x] = [read(other[n, k, y], at) for k in range(c)]
                seen[n, y, x] = read(opposite[n, y], at)
            distances = []
            for n, k, y, x in np.ndindex(b, c, h - 2, w - 2):
                p, q = (array[n, k, y : y + 3, x : x + 3] for array in (warped, image))
                covariance = ((p - p.mean()) * (q - q.mean())).mean()
                ssim = (2 * p.mean() * q.mean() + 1e-4) * (2 * covariance + 9e-4)
                ssim /= (p.mean() ** 2 + q.mean() ** 2 + 1e-4) * (p.var() + q.var() + 9e-4)
                distances.append(np.clip((1 - ssim) / 2, 0, 1))
            appearance = ssim_weight * np.mean(distances) + (1 - ssim_weight) * np.abs(warped - image).mean()
            rough = sum(
                (np.abs(np.diff(own, axis=axis)) * np.exp(-np.abs(np.diff(image, axis=axis + 1)).mean(1))).mean()
                for axis in (1, 2)
            )
            total += appearance + smoothness / 2**s * rough + lr * np.abs(own - seen).mean()
    return total


@pytest.mark.parametrize("weights", [(0.85, 0.1, 1.0), (0.3, 0.7, 0.2)])
def test_equals_the_objective_by_loops(weights: tuple[float, float, float]) -> None:
    maps, left, right = pair()
    loss, parts = LeftRightLoss(*weights)(maps, left, right, return_parts=True)
    assert loss.item() == pytest.approx(oracle(maps, left, right, *weights), rel=1e-9)
    scales = torch.tensor([1.0, 0.5])
    sums = parts.appearance + weights[1] * scales * parts.smoothness + weights[2] * parts.consistency
    torch.testing.assert_close(sums.sum(), loss.detach())
    single = LeftRightLoss(*weights)([one.detach().float() for one in maps], left.float(), right.float())
    assert single.item() == pytest.approx(loss.item(), rel=1e-4)


def test_gradient() -> None:
    maps, left, right = pair(1, 6, 8)
    assert gradcheck(lambda *maps: LeftRightLoss()(maps, left, right), tuple(maps[:1]), eps=1e-7, atol=1e-6)
    maps, left, right = pair()
    left.requires_grad_()
    loss = LeftRightLoss()(maps, left, right)
    assert grad(loss, left, allow_unused=True, retain_graph=True) == (None,)
    assert all(one.abs().sum() > 0 for one in grad(loss, maps))


def shifted(shift: int = 8, width: int = 64) -> tuple[Tensor, Tensor]:
    """A pair of blocks of 8 pixels with that disparity everywhere, the image's border repeated where it ends."""
    blocks = torch.rand(2, 3, 4, width // 8, dtype=torch.float64)
    texture = blocks.repeat_interleave(8, 2).repeat_interleave(8, 3)
    x = torch.arange(width)
    return texture[..., x.clamp_min(shift)], texture[..., (x + shift).clamp_max(width - 1)]


def test_a_constant_disparity_leaves_nothing_at_the_right_one() -> None:
    left, right = shifted()

    def constant(share: float, channels: int) -> list[Tensor]:
        sizes = [(2, channels, 32 >> s, 64 >> s) for s in range(4)]
        return [torch.full(size, share, dtype=torch.float64) for size in sizes]

    assert LeftRightLoss()(constant(8 / 64, 2), left, right).abs() < 1e-12
    assert GargLoss()(constant(8 / 64, 1), left, right)[0].abs() < 1e-12
    for share in (0.0, 4 / 64, 12 / 64):
        assert LeftRightLoss()(constant(share, 2), left, right) > 0.1
        assert GargLoss()(constant(share, 1), left, right)[0] > 0.01
    # A disparity that the images do not agree about costs consistency, whatever they show.
    maps = constant(8 / 64, 2)
    for one in maps:
        one[:, 1] += 0.01
    flat = torch.full_like(left, 0.5)
    loss, parts = LeftRightLoss(smoothness=0, consistency=3)(maps, flat, flat, return_parts=True)
    torch.testing.assert_close(parts.consistency, torch.full((4,), 0.02, dtype=torch.float64))
    assert loss.item() == pytest.approx(3 * 4 * 0.02)


def test_a_mirrored_pair_that_changed_places_is_the_same_pair() -> None:
    maps, left, right = pair()
    mirrored = [one.flip(-1).flip(1) for one in maps]
    loss, other = LeftRightLoss()(maps, left, right), LeftRightLoss()(mirrored, right.flip(-1), left.flip(-1))
    torch.testing.assert_close(loss, other)
    assert relative_error(grad(loss, maps), grad(other, maps)) < 1e-10


def test_garg_by_hand() -> None:
    maps, left, right = pair()
    maps = [one[:, :1].detach().requires_grad_() for one in maps]
    loss, error, rough = GargLoss(smoothness=0.3)(maps, left, right)
    errors, gradients, roughs = [], [], []
    for s, one in enumerate(maps):
        target, source = (torch.nn.functional.avg_pool2d(x, 2**s).numpy() for x in (left, right))
        b, c, h, w = target.shape
        difference, slopes = np.zeros_like(target), np.zeros_like(target)
        along_x = np.gradient(source, axis=3)
        for n, y, x in np.ndindex(b, h, w):
            at = x - one[n, 0, y, x].item() * w
            difference[n, :, y, x] = [read(source[n, k, y], at) - target[n, k, y, x] for k in range(c)]
            slopes[n, :, y, x] = [read(along_x[n, k, y], at) if 0 <= at <= w - 1 else 0 for k in range(c)]
        errors.append((difference**2).mean())
        # d/dD of (I + (D - D') I_x - J)^2 at D = D', per share of the width, of which D is -w times.
        gradients.append(-2 * w * (difference * slopes).sum(1, keepdims=True) / difference.size / len(maps))
        pixels = one.detach().numpy() * w
        roughs.append(sum((np.diff(pixels, axis=axis) ** 2).mean() for axis in (2, 3)))
    assert error.item() == pytest.approx(np.mean(errors))
    assert rough.item() == pytest.approx(np.mean(roughs))
    assert loss.item() == pytest.approx(np.mean(errors) + 0.3 * np.mean(roughs))
    # Without smoothness the gradient is the linearised one; without the series it is that of the sampler.
    linear = GargLoss(0)(maps, left, right)[0]
    assert relative_error(grad(linear, maps), [torch.from_numpy(one) for one in gradients]) < 1e-10
    assert GargLoss(0, linear=False)(maps, left, right)[0].item() == pytest.approx(linear.item())
    assert gradcheck(lambda one: GargLoss(0.3, linear=False)([one], left, right)[0], maps[1], eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("loss", [LeftRightLoss(), GargLoss()])
def test_bad_arguments_and_values_that_are_not_finite(loss: torch.nn.Module) -> None:
    maps, left, right = pair()
    channels = 2 if isinstance(loss, LeftRightLoss) else 1
    maps = [one[:, :channels].detach() for one in maps]
    with pytest.raises(TypeError, match="disparities: expected a non-empty sequence of tensors, got Tensor"):
        loss(maps[0], left, right)
    with pytest.raises(TypeError, match="disparities: expected a non-empty sequence of tensors, got list"):
        loss([], left, right)
    with pytest.raises(ValueError, match=rf"disparities\[1\]: expected shape \(B, {channels}, h, w\) with B = 2"):
        loss([maps[0], maps[0][:1]], left, right)
    with pytest.raises(ValueError, match=r"disparities\[0\]: expected h and w of at least 3, got \(2, ., 2, 24\)"):
        loss([maps[0][:, :, :2]], left, right)
    with pytest.raises(ValueError, match=r"right: expected shape \(B, C, H, W\) like left"):
        loss(maps, left, right[..., 1:])
    with pytest.raises(TypeError, match=r"left: expected a floating-point tensor, got torch\.uint8"):
        loss(maps, left.byte(), right)
    maps[0][0, 0, 3, 4] = torch.nan
    found = loss(maps, left, right)
    assert (found[0] if isinstance(found, tuple) else found).isnan()
