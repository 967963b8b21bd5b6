import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from scenes import relative_error, scene
from torch import nn

from mdepth_fast import use_backend
from mdepth_fast.geometry import flip_geometry, scale_intrinsics
from mdepth_fast.losses import (
    EdgeAwareSmoothness,
    FlowLoss,
    GargLoss,
    LeftRightLoss,
    MinReprojectionLoss,
    MonodepthLoss,
    PhotometricLoss,
    SfMLearnerLoss,
    Vid2DepthLoss,
)
from mdepth_fast.losses.monodepth import image_pyramid
from mdepth_fast.ops import (
    disparity_to_depth,
    edge_aware_smoothness,
    inverse_warp,
    min_reprojection,
    photometric_loss,
)


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


def ablated(**options):
    """Loss and its arguments at 4 scales in float64, with poses that keep every point before both cameras."""
    disparities, target, sources, K, T, source_K = inputs(dtype=torch.float64)
    return MonodepthLoss(smoothness=0.0, **options), disparities, (target, sources, K, T), source_K


def single_sources(options, disparities, target, sources, K, T, source_K):
    """Photometric losses of every source alone."""
    loss = MonodepthLoss(smoothness=0.0, auto_mask=False, **options)
    return [
        loss(disparities, target, sources[:, [s]], K, T[:, [s]], source_K=source_K[:, [s]])
        for s in range(sources.shape[1])
    ]


@pytest.mark.parametrize("ssim_weight", [0.85, 0.0])
@pytest.mark.parametrize("native_scale", [False, True])
def test_average_reprojection_is_the_mean_of_the_single_sources(ssim_weight, native_scale):
    options = {"ssim_weight": ssim_weight, "native_scale": native_scale}
    module, disparities, rest, source_K = ablated(auto_mask=False, average_reprojection=True, **options)
    loss, parts = module(disparities, *rest, source_K=source_K, return_parts=True)
    want = torch.stack(single_sources(options, disparities, *rest, source_K)).mean()
    torch.testing.assert_close(loss, want)
    grads = [torch.autograd.grad(value, disparities) for value in (loss, want)]
    assert relative_error(*grads) < 1e-9
    assert all((chosen == 0).all() for chosen in parts.selection)


def test_average_reprojection_compares_with_the_average_of_the_unwarped_sources():
    module, disparities, (target, sources, K, T), source_K = ablated(average_reprojection=True)
    loss, parts = module(disparities[:1], target, sources, K, T, source_K=source_K, return_parts=True)
    depth = disparity_to_depth(disparities[0], min_depth=0.1, max_depth=100.0)
    warped = [inverse_warp(sources[:, s], depth, K, T[:, s], source_K=source_K[:, s])[0] for s in range(2)]
    errors = torch.stack([photometric_loss(one, target) for one in warped]).mean(0)
    identity = torch.stack([photometric_loss(one, target) for one in sources.unbind(1)]).mean(0)
    torch.testing.assert_close(loss, torch.minimum(errors, identity).mean())
    assert torch.equal(parts.selection[0], torch.where(errors < identity, 0, -1).to(torch.int8))
    assert 0 < (parts.selection[0] < 0).double().mean() < 1


def test_native_scale_is_the_loss_of_smaller_images():
    module, disparities, (target, sources, K, T), source_K = ablated(native_scale=True)
    got, parts = module(disparities, target, sources, K, T, source_K=source_K, return_parts=True)
    losses = []
    for s, disparity in enumerate(disparities):
        small = [F.avg_pool2d(image, 2**s) for image in (target, *sources.unbind(1))]
        scaled = [scale_intrinsics(one, 0.5**s, 0.5**s) for one in (K, source_K)]
        full = MonodepthLoss(smoothness=0.0)
        losses.append(full([disparity], small[0], torch.stack(small[1:], 1), scaled[0], T, source_K=scaled[1]))
        assert parts.selection[s].shape[2:] == disparity.shape[2:]
    torch.testing.assert_close(got, torch.stack(losses).mean())
    each = module(disparities, target, sources, K, [T, T, T, T], source_K=source_K)
    torch.testing.assert_close(each, got)
    assert abs(got - MonodepthLoss(smoothness=0.0)(disparities, target, sources, K, T, source_K=source_K)) > 1e-4


@pytest.mark.parametrize("native_scale", [False, True])
@pytest.mark.parametrize("average", [False, True])
def test_a_predicted_mask_of_ones_changes_nothing_and_of_halves_halves(average, native_scale):
    options = {"average_reprojection": average, "native_scale": native_scale, "auto_mask": False}
    plain, disparities, rest, source_K = ablated(**options)
    want = plain(disparities, *rest, source_K=source_K)
    module = MonodepthLoss(smoothness=0.0, predictive_mask=True, **options)
    for value in (1.0, 0.5):
        shapes = [(2, 2, *one.shape[2:]) for one in disparities]
        masks = [torch.full(shape, value, dtype=torch.float64, requires_grad=True) for shape in shapes]
        got, parts = module(disparities, *rest, source_K=source_K, masks=masks, return_parts=True)
        entropy = -math.log(value)
        torch.testing.assert_close(parts.mask, torch.full((4,), entropy, dtype=torch.float64))
        torch.testing.assert_close(got, value * want + 0.2 * entropy)
        assert all((grad != 0).any() for grad in torch.autograd.grad(got, masks))


def test_a_mask_chooses_the_source_that_it_favours():
    module, disparities, rest, source_K = ablated(auto_mask=False, predictive_mask=True)
    masks = [torch.ones(2, 2, *one.shape[2:], dtype=torch.float64) for one in disparities]
    for mask in masks:
        mask[:, 1, :, : mask.shape[3] // 2] = 1e-6
    _, parts = module(disparities, *rest, source_K=source_K, masks=masks, return_parts=True)
    assert (parts.selection[0][..., :20] == 1).all() and (parts.selection[0][..., 28:] == 0).any()


def test_points_behind_a_camera_never_win():
    """Composed as fused: the source behind whose camera everything lies is as if it were not there."""
    module, disparities, (target, sources, K, T), source_K = ablated(auto_mask=False, predictive_mask=True)
    ones = [torch.ones(2, 2, *one.shape[2:], dtype=torch.float64) for one in disparities]
    T = T.clone()
    T[:, 1, 2, 3] = -1000.0
    got = module(disparities, target, sources, K, T, source_K=source_K, masks=ones)
    want = MonodepthLoss(smoothness=0.0, auto_mask=False)(disparities, target, sources, K, T, source_K=source_K)
    torch.testing.assert_close(got, want)
    T[:, 0, 2, 3] = -1000.0
    got, parts = module(disparities, target, sources, K, T, source_K=source_K, masks=ones, return_parts=True)
    assert got == 0 and all((chosen == -1).all() for chosen in parts.selection)
    both = MonodepthLoss(smoothness=0.0, average_reprojection=True)
    _, parts = both(disparities, target, sources, K, T, source_K=source_K, return_parts=True)
    assert all((chosen == -1).all() for chosen in parts.selection)


def test_noise_on_the_identity_breaks_ties_in_training_only():
    """A still camera: warping by nothing ties with the unwarped source, which noise decides either way."""
    disparities, target, _, K, *_ = inputs()
    sources = torch.stack([target, target], 1)
    still = torch.eye(4).expand(2, 2, 4, 4)
    for average in (False, True):
        module = MonodepthLoss(identity_noise=1e-5, average_reprojection=average)
        _, parts = module(disparities, target, sources, K, still, return_parts=True)
        assert 0.2 < (parts.selection[0] < 0).double().mean() < 0.95
        _, parts = module.eval()(disparities, target, sources, K, still, return_parts=True)
        assert (parts.selection[0] == -1).all()


def test_smoothness_is_weighted_by_the_scale_of_a_map():
    disparities, target, sources, K, T, _ = inputs()
    _, parts = MonodepthLoss()(disparities, target, sources, K, T, return_parts=True)
    chosen = [disparities[0], disparities[2]]
    loss, two = MonodepthLoss(smoothness=0.5, scales=(0, 2))(chosen, target, sources, K, T, return_parts=True)
    torch.testing.assert_close(two.smoothness, parts.smoothness[[0, 2]])
    torch.testing.assert_close(loss, (two.photometric + 0.5 * two.smoothness / torch.tensor([1.0, 4.0])).mean())


def test_ablations_refuse_what_does_not_go_together():
    disparities, target, sources, K, T, _ = inputs()
    masks = [torch.rand(2, 2, *one.shape[2:]) for one in disparities]
    with pytest.raises(ValueError, match="predictive_mask: expected auto_mask=False with it"):
        MonodepthLoss(predictive_mask=True)
    with pytest.raises(ValueError, match="identity_noise: expected a finite number of at least 0, got -1"):
        MonodepthLoss(identity_noise=-1)
    with pytest.raises(ValueError, match="masks: expected None without predictive_mask, got 4 masks"):
        MonodepthLoss()(disparities, target, sources, K, T, masks=masks)
    module = MonodepthLoss(auto_mask=False, predictive_mask=True)
    for given, message in (
        (None, "masks: expected one mask for each disparity map, got None"),
        (masks[:2], "masks: expected 4, as many as disparities, got 2"),
        ([masks[0][:, :1], *masks[1:]], r"masks\[0\]: expected shape \(2, 2, 32, 48\), got \(2, 1, 32, 48\)"),
    ):
        with pytest.raises(ValueError, match=message):
            module(disparities, target, sources, K, T, masks=given)
    with pytest.raises(ValueError, match="T: expected shape"):
        module(disparities, target, sources, K, T[:, :1], masks=masks)
    with pytest.raises(ValueError, match="disparities: expected 2, one for each of scales, got 4"):
        MonodepthLoss(scales=(0, 1))(disparities, target, sources, K, T)


def test_mirrored_images_and_intrinsics_give_the_same_loss():
    disparities, target, sources, K, T, source_K = inputs(dtype=torch.float64)
    width = target.shape[3]
    mirrored_K, mirrored_T = flip_geometry(K, T, width)
    others, _ = flip_geometry(source_K, T, width)
    flipped = [one.flip(-1) for one in disparities]
    for options in ({}, {"average_reprojection": True}, {"native_scale": True}):
        module = MonodepthLoss(**options)
        loss = module(disparities, target, sources, K, T, source_K=source_K)
        other = module(flipped, target.flip(-1), sources.flip(-1), mirrored_K, mirrored_T, source_K=others)
        torch.testing.assert_close(other, loss, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("loss", "scale", "K", "message"),
    [
        (MonodepthLoss(), 255, None, r"target: expected images in \[0, 1\], got values up to .*; divide by 255"),
        (MinReprojectionLoss(), 255, None, "target: expected images"),
        (MonodepthLoss(), 1, (0.58, 1.92, 0.5, 0.5), "K: expected pixels of 64x32 .*, got fractions: fx 0.58"),
        (MonodepthLoss(), 1, (721, 721, 609, 172), "K: expected pixels of 64x32 .*, got those of another size"),
    ],
)
def test_inputs_of_another_scale_are_noticed_once(loss, scale, K, message):
    disparities, target, sources, camera, T, _ = inputs(width=64)
    if K:
        camera = torch.tensor([[K[0], 0, K[2]], [0, K[1], K[3]], [0, 0, 1.0]]).expand_as(camera)
    maps = [1 / one.detach() for one in disparities[:1]] if isinstance(loss, MinReprojectionLoss) else disparities
    with pytest.warns(UserWarning, match=message):
        if isinstance(loss, MonodepthLoss):
            loss(maps, target * scale, sources * scale, camera, T)
        else:
            loss(target * scale, sources * scale, maps, camera, T)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MonodepthLoss()(disparities, target, sources, inputs(width=64)[3], T)


def test_every_loss_of_images_notices_bytes():
    image = torch.rand(1, 3, 32, 64)
    K, T = torch.tensor([[[40.0, 0, 31], [0, 40, 15], [0, 0, 1]]]), torch.eye(4).expand(1, 1, 4, 4)
    map, far = torch.full((1, 1, 32, 64), 0.1), torch.full((1, 2, 32, 64), 0.1)
    pair = torch.stack([image, image], 1)
    calls = (
        (PhotometricLoss(), lambda loss, x: loss(x * image, x * image)),
        (SfMLearnerLoss(explainability=0.0), lambda loss, x: loss([map], x * image, x * pair[:, :1], K, T)),
        (
            Vid2DepthLoss(),
            lambda loss, x: loss([map[:, None].expand(1, 2, 1, 32, 64)], x * pair, K, T.expand(1, 2, 4, 4)),
        ),
        (LeftRightLoss(), lambda loss, x: loss([far], x * image, x * image)),
        (GargLoss(), lambda loss, x: loss([map], x * image, x * image)),
        (FlowLoss(), lambda loss, x: loss(far, x * image, x * image)),
    )
    for loss, call in calls:
        with pytest.warns(UserWarning, match=r"expected images in \[0, 1\], got values up to 25\d"):
            call(loss, 255)
