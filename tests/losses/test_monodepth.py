import pytest
import torch
import torch.nn.functional as F
from scenes import relative_error, scene
from torch import nn

from mdepth_fast import use_backend
from mdepth_fast.losses import EdgeAwareSmoothness, MinReprojectionLoss, MonodepthLoss, PhotometricLoss
from mdepth_fast.losses.monodepth import image_pyramid
from mdepth_fast.ops import disparity_to_depth, edge_aware_smoothness, min_reprojection, photometric_loss


def inputs(batch=2, height=32, width=48, dtype=torch.float32):
    target, sources, _, K, T, source_K = scene(batch, height, width, 2, 1, dtype)
    disparities = [
        (0.02 + 0.05 * torch.rand(batch, 1, height >> s, width >> s, dtype=dtype)).requires_grad_() for s in range(4)
    ]
    return disparities, target, sources, K, T, source_K


def by_hand(disparities, target, sources, K, T, source_K, smoothness=1e-3):
    """The published objective, term by term, in plain PyTorch."""
    total = 0
    image = target
    for s, disparity in enumerate(disparities):
        if s:
            image = F.avg_pool2d(image, 2)
        full = F.interpolate(disparity, size=target.shape[2:], mode="bilinear", align_corners=False)
        depth = 1 / (0.01 + 9.99 * full)
        photometric = min_reprojection(target, sources, depth, K, T, source_K=source_K, backend="reference").loss
        smooth = edge_aware_smoothness(disparity, image, backend="reference")
        total = total + photometric + smoothness / 2**s * smooth
    return total / len(disparities)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_equals_the_objective_written_by_hand(backend):
    disparities, *rest = inputs(dtype=torch.float64)
    target, sources, K, T, source_K = rest
    T.requires_grad_()
    with use_backend(backend):
        loss = MonodepthLoss()(disparities, target, sources, K, T, source_K=source_K)
    want = by_hand(disparities, *rest)
    assert relative_error([loss], [want]) < 1e-12
    leaves = [*disparities, T]
    assert relative_error(torch.autograd.grad(loss, leaves), torch.autograd.grad(want, leaves)) < 1e-9


def test_parts_sum_to_the_loss_and_show_the_selection():
    disparities, target, sources, K, T, source_K = inputs()
    module = MonodepthLoss(smoothness=0.5)
    loss, parts = module(disparities, target, sources, K, T, source_K=source_K, return_parts=True)
    weights = torch.tensor([0.5 / 2**s for s in range(4)])
    torch.testing.assert_close((parts.photometric + weights * parts.smoothness).mean(), loss.detach())
    assert not parts.photometric.requires_grad and len(parts.selection) == 4
    for chosen in parts.selection:
        assert chosen.shape == (2, 1, 32, 48) and chosen.dtype == torch.int8
        assert chosen.min() >= -1 and chosen.max() <= 1


def test_a_given_pyramid_is_used_and_the_default_is_the_area_pyramid():
    disparities, target, sources, K, T, _ = inputs()
    module = MonodepthLoss(smoothness=1.0)
    default = module(disparities, target, sources, K, T)
    pyramid = [target]
    for _ in range(3):
        pyramid.append(F.avg_pool2d(pyramid[-1], 2))
    torch.testing.assert_close(module(disparities, target, sources, K, T, pyramid), default)
    flat = [torch.zeros_like(level) for level in pyramid]
    assert module(disparities, target, sources, K, T, flat) > default  # no edge excuses a step any more


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_halved_level_is_the_mean_of_four_pixels(dtype, layout):
    image = torch.rand(2, 3, 38, 54, dtype=dtype).contiguous(memory_format=layout)
    maps = [torch.empty(2, 1, *size) for size in ((38, 54), (19, 27), (10, 14), (5, 7))]
    pyramid, want = image_pyramid(image, maps), image
    for level, one in zip(pyramid, maps):
        want = F.interpolate(want, size=one.shape[2:], mode="area")
        torch.testing.assert_close(level, want, rtol=0, atol=2 * torch.finfo(dtype).eps)


def test_sizes_that_do_not_halve():
    target, sources, _, K, T, _ = scene(1, 33, 47, 2, 1)
    disparities = [torch.rand(1, 1, h, w, requires_grad=True) for h, w in ((33, 47), (17, 24), (5, 7))]
    MonodepthLoss()(disparities, target, sources, K, T).backward()
    assert all(torch.isfinite(d.grad).all() and (d.grad != 0).any() for d in disparities)


def test_modules_are_the_ops():
    target, sources, depths, K, T, source_K = scene(2, 8, 9, 2, 2)
    result = MinReprojectionLoss(ssim_weight=0.5, auto_mask=False, padding="zeros")(
        target, sources, depths, K, T, source_K=source_K
    )
    want = min_reprojection(
        target, sources, depths, K, T, source_K=source_K, ssim_weight=0.5, auto_mask=False, padding="zeros"
    )
    assert torch.equal(result.loss, want.loss)
    assert torch.equal(
        PhotometricLoss(0.3)(target, sources[:, 0]), photometric_loss(target, sources[:, 0], ssim_weight=0.3).mean()
    )
    assert torch.equal(EdgeAwareSmoothness()(depths[0], target), edge_aware_smoothness(depths[0], target))


def test_half_precision_maps_under_autocast():
    disparities, target, sources, K, T, _ = inputs()
    want = MonodepthLoss()([d.bfloat16() for d in disparities], target, sources, K, T)
    with torch.autocast("cpu", torch.bfloat16):
        got = MonodepthLoss()([d.bfloat16() for d in disparities], target, sources, K, T)
    assert got.dtype == torch.float32 and torch.equal(got, want)


def test_drop_in_for_a_plain_pytorch_loop():
    """Somebody else's loop: a network of theirs, their optimiser, the loss replaced by one line. The scene is a plane
    two units away, seen from a small step to the side, and the loop must find its depth."""
    generator = torch.Generator().manual_seed(0)
    height, width, true_depth, focal, baseline = 24, 80, 2.0, 40.0, 0.1  # a disparity of 2 pixels
    texture = F.interpolate(torch.rand(1, 3, 8, 30, generator=generator), size=(height, width), mode="bicubic")
    target, source = texture.clamp(0, 1), torch.roll(texture, 2, -1).clamp(0, 1)
    K = torch.tensor([[[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]]])
    T = torch.eye(4).view(1, 1, 4, 4).clone()
    T[..., 0, 3] = baseline

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1), nn.Sigmoid())
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    loss_function = MonodepthLoss(min_depth=1.0, max_depth=10.0)
    losses = []
    for _ in range(120):
        optimiser.zero_grad()
        disparity = network(target)
        loss = loss_function([disparity], target, source[:, None], K, T)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    depth = disparity_to_depth(disparity, min_depth=1.0, max_depth=10.0)[..., :, 8:-8]
    assert losses[-1] < 0.3 * losses[0]
    assert (depth - true_depth).abs().median() < 0.1


def test_errors():
    disparities, target, sources, K, T, _ = inputs()
    module = MonodepthLoss()
    for arguments, error, message in [
        ((disparities[0], target, sources, K, T), TypeError, r"^disparities: expected a non-empty sequence"),
        (([], target, sources, K, T), TypeError, r"^disparities"),
        (([disparities[0][:1]], target, sources, K, T), ValueError, r"^disparities\[0\]: expected shape .*B = 2, got"),
        ((disparities, target, sources, K, T, [target]), ValueError, r"^pyramid: expected 4 images.*got 1"),
        ((disparities, target, sources[:, :1], K, T), ValueError, r"^T: expected shape .*got \(2, 2, 4, 4\)"),
    ]:
        with pytest.raises(error, match=message):
            module(*arguments)
    with pytest.raises(ValueError, match="min_depth"):
        MonodepthLoss(min_depth=5.0, max_depth=1.0)(disparities, target, sources, K, T)
