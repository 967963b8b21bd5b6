"""Every public op as a function of its tensors, so that one test can ask the same of all of them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from scenes import scene

from mdepth_fast import ops
from mdepth_fast.geometry import backproject, pose_matrix


@dataclass(frozen=True)
class Case:
    """`call(backend, *inputs)` returns the outputs; `inputs(...)` builds arguments by name.

    `shared` names the inputs without a batch dimension, `of_nothing` is the scalar loss of an empty batch.
    """

    name: str
    inputs: Callable[..., dict[str, torch.Tensor]]
    differentiable: tuple[str, ...]
    call: Callable[..., list[torch.Tensor]]
    shared: tuple[str, ...] = ()
    of_nothing: float = float("nan")  # the mean over nothing, as PyTorch has it
    kernels: bool = True  # has GPU kernels of its own
    layer: bool = False  # computed in float32 as all are, but returned in its input's dtype
    sums: bool = False  # computed in float64 whatever the dtype of its inputs
    small: dict[str, int] = field(default_factory=lambda: {"height": 4, "width": 5})  # for gradcheck


def _warp_inputs(batch=2, height=7, width=13, dtype=torch.float32, seed=0):
    _, sources, depths, K, T, source_K = scene(batch, height, width, 1, 1, dtype, seed)
    return {"source": sources[:, 0], "depth": depths[0], "K": K, "T": T[:, 0], "source_K": source_K[:, 0]}


def _warp(backend, source, depth, K, T, source_K):
    return [ops.inverse_warp(source, depth, K, T, source_K=source_K, backend=backend)[0]]


def _photometric_inputs(batch=2, height=7, width=13, dtype=torch.float32, seed=0):
    target, sources, *_ = scene(batch, height, width, 1, 1, dtype, seed)
    return {"prediction": sources[:, 0], "target": target}


def _photometric(backend, prediction, target):
    return [ops.photometric_loss(prediction, target, backend=backend)]


def _reprojection_inputs(batch=2, height=7, width=13, dtype=torch.float32, seed=0):
    target, sources, depths, K, T, source_K = scene(batch, height, width, 2, 2, dtype, seed)
    return {
        "target": target,
        "sources": sources,
        "depth": depths[0],
        "depth_1": depths[1],
        "K": K,
        "T": T,
        "source_K": source_K,
    }


def _reprojection(backend, target, sources, depth, depth_1, K, T, source_K):
    return [ops.min_reprojection(target, sources, [depth, depth_1], K, T, source_K=source_K, backend=backend).loss]


def _smoothness_inputs(batch=2, height=7, width=13, dtype=torch.float32, seed=0):
    target, _, depths, *_ = scene(batch, height, width, 1, 1, dtype, seed)
    return {"disparity": 1 / depths[0], "image": target}


def _smoothness(backend, disparity, image):
    return [
        torch.stack(
            [ops.edge_aware_smoothness(disparity, image, normalize=mean, backend=backend) for mean in (True, False)]
        )
    ]


def _view_inputs(batch=2, height=7, width=13, dtype=torch.float32, seed=0):
    """Windows need three rows and columns."""
    target, sources, depths, K, T, source_K = scene(batch, max(height, 3), max(width, 3), 1, 1, dtype, seed)
    generator = torch.Generator().manual_seed(seed)
    weight = 0.2 + 0.8 * torch.rand(depths[0].shape, generator=generator, dtype=torch.float64)
    return {
        "target": target,
        "source": sources[:, 0],
        "depth": depths[0],
        "K": K,
        "T": T[:, 0],
        "source_K": source_K[:, 0],
        "weight": weight.to(dtype),
    }


def _view(backend, **tensors):
    """vid2depth's two terms and SfMLearner's one."""
    masked = ops.view_synthesis_loss(**tensors, backend=backend)
    grey = ops.view_synthesis_loss(**tensors, padding="grey", ssim=False, backend=backend)
    return [torch.stack([*masked, grey.l1])]


def _disparity_inputs(batch=2, height=7, width=13, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    disparity = torch.rand(batch, 1, height, width, generator=generator, dtype=torch.float64)
    return {"disparity": (0.02 + 0.98 * disparity).to(dtype)}


def _disparity(backend, disparity):
    """Larger, smaller, one of each, and as it is; together little larger, as a test fills a GPU's memory with it."""
    height, width = disparity.shape[2:]
    larger, smaller = (height + height // 3 + 1, width + width // 4 + 1), (height // 2 + 1, (width + 2) // 3)
    sizes = [larger, smaller, (2 * height + 1, width // 3 + 1), None]
    return [ops.disparity_to_depth(disparity, size, min_depth=0.5, max_depth=50.0, backend=backend) for size in sizes]


def _ordinal_inputs(batch=2, height=7, width=13, dtype=torch.float32, seed=0, bins=19):
    """More bins than the kernels take together; a third of the depths is missing, some lie outside all bins."""
    generator = torch.Generator().manual_seed(seed)
    thresholds = torch.exp(torch.linspace(0.0, 3.0, bins + 1, dtype=torch.float64))
    depth = 25 * torch.rand(batch, 1, height, width, generator=generator, dtype=torch.float64)
    missing = torch.rand(depth.shape, generator=generator) < 1 / 3
    logits = 3 * torch.randn(batch, 2 * bins, height, width, generator=generator, dtype=torch.float64)
    depth = depth.masked_fill(missing, 0.0)
    return {"logits": logits.to(dtype), "depth": depth.to(dtype), "thresholds": thresholds.to(dtype)}


def _decode_inputs(**sizes):
    inputs = _ordinal_inputs(**sizes)
    return {"logits": inputs["logits"], "thresholds": inputs["thresholds"]}


def _decode(backend, logits, thresholds):
    return list(ops.ordinal_decode(logits, thresholds, backend=backend))


def _ordinal_loss(backend, logits, depth, thresholds):
    return [ops.ordinal_loss(logits, depth, thresholds, backend=backend)]


def sparse_inputs(batch=2, height=7, width=13, dtype=torch.float32, seed=0):
    """A third of the depths is missing; errors of some percent, and a few large ones."""
    generator = torch.Generator().manual_seed(seed)
    depth = 1 + 20 * torch.rand(batch, 1, height, width, generator=generator, dtype=torch.float64)
    prediction = depth * torch.exp(0.3 * torch.randn(depth.shape, generator=generator, dtype=torch.float64) + 0.1)
    depth = depth.masked_fill(torch.rand(depth.shape, generator=generator) < 1 / 3, 0.0)
    return {"prediction": prediction.to(dtype), "depth": depth.to(dtype)}


def _silog(backend, prediction, depth):
    """Eigen's, of a network that gives log(depth), and BTS's of one that gives depth."""
    keywords = {"form": "sqrt", "variance_focus": 0.85, "scale": 10.0, "backend": backend}
    losses = [
        ops.silog_loss(0.125 * prediction, depth, valid="measured", log_prediction=True, backend=backend),
        ops.silog_loss(prediction, depth, valid=depth > 0, **keywords),
    ]
    return [torch.stack(losses)]


def _berhu(backend, prediction, depth):
    """A column of constants holds the largest error: the threshold depends on no input, as the gradient has it."""
    prediction, depth = F.pad(prediction, (0, 1), value=40.0), F.pad(depth, (0, 1), value=10.0)
    return [ops.berhu_loss(prediction, depth, valid="measured", backend=backend)]


def _nnconv5_inputs(batch=2, height=7, width=13, dtype=torch.float32, seed=0, channels=5, out_channels=11):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "x": normal(batch, channels, height, width),
        "dw_weight": 0.3 * normal(channels, 1, 5, 5),
        "dw_scale": normal(channels),
        "dw_shift": normal(channels),
        "pw_weight": 0.5 * normal(out_channels, channels, 1, 1),
        "pw_scale": normal(out_channels),
        "pw_shift": normal(out_channels),
        "skip": normal(batch, out_channels, 2 * height, 2 * width),
    }


def _nnconv5(backend, *, skip, **tensors):
    return [ops.nnconv5(**tensors, skip=skip, backend=backend)]


def _stack_inputs(batch=2, height=7, width=13, dtype=torch.float32, seed=0, channels=5, out_channels=11):
    """A dense block, a depthwise one of stride 2, and one that doubles and adds the first's result."""
    inputs = _nnconv5_inputs(batch, height + height % 2, width + width % 2, dtype, seed, channels, out_channels)
    dense = _nnconv5_inputs(1, 3, 3, dtype, seed + 1, 3, channels)["skip"][:, :, :3, :3]
    return {
        "x": inputs["x"][:, :3].contiguous(),
        "dense_weight": 0.2 * dense[0, :, None].expand(channels, 3, 3, 3).contiguous(),
        "dense_bias": inputs["dw_scale"],
        "dw_weight": inputs["dw_weight"],
        "dw_bias": inputs["dw_shift"],
        "weight": inputs["pw_weight"],
        "bias": inputs["pw_shift"],
        "weight_2": inputs["pw_weight"].mT.transpose(0, 1).contiguous(),
        "bias_2": inputs["dw_shift"].flip(0),
    }


def _stack(backend, x, dense_weight, dense_bias, dw_weight, dw_bias, weight, bias, weight_2, bias_2):
    blocks = [
        ops.ConvBlock(dense_weight, dense_bias, cap=1.5),
        ops.ConvBlock(weight, bias, dw_weight[..., 1:4, 1:4], dw_bias, stride=2, cap=1.5),
        ops.ConvBlock(weight_2, bias_2, doubled=True, skip=0),
        ops.ConvBlock(weight, bias, dw_weight, dw_bias, doubled=True),
    ]
    return [ops.conv_stack(x, blocks, backend=backend)]


def _metrics_inputs(batch=2, height=7, width=13, dtype=torch.float32, seed=0):
    """Half of the ground truth is missing, some is out of range; some predictions are not positive."""
    generator = torch.Generator().manual_seed(seed)
    far, error, missing, odd = torch.rand(4, batch, 1, height, width, generator=generator, dtype=torch.float64)
    depth = 1 + 90 * far**2
    prediction = depth * (1.4 * (error - 0.5)).exp() * torch.where(odd < 0.05, -1, 1)
    return {
        "prediction": prediction.to(dtype),
        "ground_truth": depth.masked_fill(missing < 0.5, 0).to(dtype),
        "scale": torch.linspace(0.8, 1.2, batch).to(dtype),
        "shift": torch.linspace(0.3, -0.2, batch).to(dtype),
    }


def _metrics(backend, prediction, ground_truth, scale, shift):
    """A window and ranges that cut; as depth and as inverse depth."""
    height, width = prediction.shape[-2:]
    options = {"window": (height // 5, height, 0, width - width // 5), "clip": (0.5, 60.0), "backend": backend}
    depth = ops.depth_metrics(prediction, ground_truth, scale=scale, valid=(0.0, 70.0), **options)
    inverse = {"scale": scale, "shift": shift / 100, "inverse": True}
    return [depth, ops.depth_metrics(1 / prediction, ground_truth, **inverse, **options)]


def icp_inputs(batch=2, height=7, width=13, dtype=torch.float32, seed=0):
    """Organised clouds of a pinhole camera, the source a little moved and noisy; a tenth of its points is missing."""
    generator = torch.Generator().manual_seed(seed)
    depth = 4 + torch.rand(batch, 1, height, width, generator=generator, dtype=torch.float64)
    K = torch.tensor([[0.9 * width, 0, width / 2 - 0.3], [0, width, height / 2], [0, 0, 1]], dtype=torch.float64)
    target = backproject(depth, K.expand(batch, 3, 3)).permute(0, 2, 3, 1)
    vectors = torch.randn(2, batch, 3, generator=generator, dtype=torch.float64) * 2e-3
    T = pose_matrix(*vectors)
    noise = 1e-3 * torch.randn(target.shape, generator=generator, dtype=torch.float64)
    missing = torch.rand(batch, height, width, 1, generator=generator) < 0.1
    moved = (target - T[:, None, None, :3, 3]) @ T[:, None, :3, :3] + noise
    init = pose_matrix(0.5 * vectors[0], 2 * vectors[1])
    return {
        "source_points": moved.masked_fill(missing, 0).to(dtype),
        "target_points": target.to(dtype).contiguous(),
        "init": init.to(dtype),
    }


def _icp(backend, source_points, target_points, init):
    """As images and as plain clouds. Only without iterations is the rule's gradient the derivative; the square has a
    second one."""
    outputs, constants = [], []
    few = slice(0, 200)  # the reference compares all with all
    for source, target in (
        (source_points, target_points),
        (source_points.flatten(1, 2)[:, few], target_points.flatten(1, 2)[:, few]),
    ):
        outputs.append(ops.icp_align(source, target, init, iterations=0, backend=backend).residual.square())
        aligned = ops.icp_align(source.detach(), target, init, iterations=2, backend=backend)
        constants += [aligned.T, aligned.residual, aligned.valid.to(aligned.residual.dtype)]
    return outputs + constants


def flow_inputs(batch=2, height=7, width=13, dtype=torch.float32, seed=0):
    """Two similar images, a flow of some pixels that leaves them here and there, and weights of which some are 0."""
    target, sources, *_ = scene(batch, height, width, 1, 1, dtype, seed)
    generator = torch.Generator().manual_seed(seed)
    flow = 2 * torch.randn(batch, 2, height, width, generator=generator, dtype=torch.float64)
    weight = torch.rand(batch, 1, height, width, generator=generator, dtype=torch.float64)
    mask = weight.masked_fill(weight < 0.2, 0.0)
    return {"target": target, "source": sources[:, 0], "flow": flow.to(dtype), "mask": mask.to(dtype)}


def _flow_warp_inputs(**sizes):
    inputs = flow_inputs(**sizes)
    return {name: inputs[name] for name in ("source", "flow")}


def _flow_warp(backend, source, flow):
    return [ops.flow_warp(source, flow, backend=backend)[0]]


def _flow_photometric(backend, target, source, flow, mask):
    """Without and with a mask, the latter as for KITTI."""
    plain = ops.flow_photometric_loss(target, source, flow, backend=backend)
    return [
        torch.stack([plain, ops.flow_photometric_loss(target, source, flow, mask=mask, alpha=0.38, backend=backend)])
    ]


def _flow_smoothness_inputs(**sizes):
    inputs = flow_inputs(**sizes)
    return {name: inputs[name] for name in ("flow", "mask")}


def _flow_smoothness(backend, flow, mask):
    losses = [
        ops.flow_smoothness_loss(flow, mask=one, form=form, alpha=alpha, scale=scale, backend=backend)
        for one, form, alpha, scale in (
            (None, "separate", 0.37, 1.0), (mask, "separate", 0.21, 1.0), (None, "joint", 0.28, 3.5),
            (mask, "joint", 0.9, 1.8),
        )
    ]  # fmt: skip
    return [torch.stack(losses)]


def spoiled(cloud):
    """With points that are not finite and, where z is depth, behind the camera."""
    cloud = cloud.clone()
    cloud.view(cloud.shape[0], -1, 3)[:, 4, 0] = torch.nan
    cloud.view(cloud.shape[0], -1, 3)[:, 9, 1] = torch.inf
    cloud.view(cloud.shape[0], -1, 3)[:, 11, 2] = -torch.inf
    cloud.view(cloud.shape[0], -1, 3)[0, 17] *= -1
    return cloud


def hard_clouds():
    """Source and targets (1,N,3) in float64, by name: clusters, a plane, a grid with ties, all points the same; few
    points and many."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    flat = normal(1, 500, 3)
    flat[..., 2] = 1.5
    grid = torch.cartesian_prod(*[torch.arange(7.0, dtype=torch.float64)] * 3)[None]
    targets = {
        "flat": flat,
        "grid": grid,
        "clusters": normal(1, 20, 1, 3).add(0.01 * normal(1, 20, 30, 3)).flatten(1, 2),
        "one point": normal(1, 1, 3),
        "one point often": normal(1, 1, 3).expand(1, 40, 3),
        "16 points": normal(1, 16, 3),
        "17 points": normal(1, 17, 3),
        "many": normal(1, 1500, 3),
    }
    return torch.cat([3 * normal(1, 300, 3), grid + 0.5], 1), targets


def degenerate_clouds(organised):
    """Source, target and init, by name: too few pairs, pairs on a line, none."""
    line = torch.tensor([[1.0, 0, 5], [2, 0, 5], [3, 0, 5], [4, 0, 5]], dtype=torch.float64)[None]
    shifted = pose_matrix(torch.zeros(1, 3), torch.tensor([[0.01, 0.02, 0.0]])).double()
    cases = {f"{count} on a line": (line[:, :count], line[:, :count], shifted) for count in (1, 2, 4)}
    if organised:
        cases = {name: (source[:, :, None], target[:, :, None], init) for name, (source, target, init) in cases.items()}
    good = icp_inputs(batch=1, height=3, width=4, dtype=torch.float64)["target_points"]
    good = good if organised else good.flatten(1, 2)
    lost, init = torch.full_like(good, torch.nan), torch.eye(4, dtype=torch.float64)[None]
    behind = init.clone()
    behind[:, 2, 3] = -100
    return {
        **cases,
        "no source": (lost, good, init),
        "no target": (good, lost, init),
        "elsewhere": (good, good, behind),
        "nan": (good, good, init * torch.nan),
    }


def awkward_metrics(dtype):
    """Arguments of `depth_metrics`: numbers that are not finite, at the ends of the ranges, and windows, by name."""
    maps = _metrics_inputs(2, 9, 131, dtype)
    prediction, ground_truth = maps["prediction"], maps["ground_truth"]
    plain = {"prediction": prediction, "ground_truth": ground_truth}
    lost = prediction.clone()
    lost[0, 0, 4, 7], ground_truth[0, 0, 4, 7] = torch.nan, 5.0
    hidden = prediction.masked_fill(ground_truth == 0, torch.nan)
    odd = ground_truth.clone()
    odd.view(-1)[:: ground_truth.numel() // 50] = torch.nan
    odd.view(-1)[1 :: ground_truth.numel() // 50] = torch.inf
    infinite = prediction.clone()
    infinite[..., 3] = torch.inf
    infinite[..., 5] = -torch.inf
    ends = torch.tensor([0.0, 1e-3, 0.5, 80.0, torch.nextafter(torch.tensor(80.0), torch.tensor(0.0))], dtype=dtype)
    steps = torch.tensor([1, 1.25, 1.5625, 1.953125, 0.8, 0.64, 0.512], dtype=dtype)
    return {
        "nan where it counts": {**plain, "prediction": lost},
        "nan where it does not": {**plain, "prediction": hidden},
        "no finite ground truth": {**plain, "ground_truth": odd, "valid": (0.0, torch.inf)},
        "infinite prediction": {**plain, "prediction": infinite},
        "no upper clip": {**plain, "clip": (1e-3, torch.inf), "valid": (0.0, torch.inf)},
        "nothing counts": {**plain, "valid": (500.0, 600.0)},
        "empty window": {**plain, "window": (3, 3, 0, 131)},
        "one pixel": {**plain, "window": (4, 5, 7, 8)},
        "last row and column": {**plain, "window": (8, 9, 1, 131)},
        "ends of the ranges": {"prediction": ends.expand(1, 1, 5, 5), "ground_truth": ends[:, None].expand(1, 1, 5, 5)},
        "steps of 1.25": {"prediction": 4 * steps.view(1, 1, 1, 7), "ground_truth": steps.new_full((1, 1, 1, 7), 4)},
        "inverse at zero": {
            **plain,
            "shift": -prediction.amax((1, 2, 3)).nan_to_num() / 2,
            "inverse": True,
        },
    }


_NNCONV5_WEIGHTS = ("dw_weight", "dw_scale", "dw_shift", "pw_weight", "pw_scale", "pw_shift")

CASES = [
    Case("inverse_warp", _warp_inputs, ("source", "depth", "K", "T", "source_K"), _warp),
    Case("photometric_loss", _photometric_inputs, ("prediction", "target"), _photometric),
    Case("min_reprojection", _reprojection_inputs, ("depth", "depth_1", "K", "T", "source_K"), _reprojection),
    Case("view_synthesis_loss", _view_inputs, ("depth", "K", "T", "source_K", "weight"), _view),
    Case("edge_aware_smoothness", _smoothness_inputs, ("disparity",), _smoothness),
    Case("disparity_to_depth", _disparity_inputs, ("disparity",), _disparity),
    Case("ordinal_decode", _decode_inputs, (), _decode, shared=("thresholds",)),
    Case("ordinal_loss", _ordinal_inputs, ("logits",), _ordinal_loss, shared=("thresholds",), of_nothing=0.0),
    Case("depth_metrics", _metrics_inputs, (), _metrics, sums=True),
    Case("flow_warp", _flow_warp_inputs, ("source", "flow"), _flow_warp),
    Case("flow_photometric_loss", flow_inputs, ("flow",), _flow_photometric),
    Case("flow_smoothness_loss", _flow_smoothness_inputs, ("flow",), _flow_smoothness),
    Case("icp_align", icp_inputs, ("source_points",), _icp),
    Case("silog_loss", sparse_inputs, ("prediction",), _silog, of_nothing=0.0),
    Case("berhu_loss", sparse_inputs, ("prediction",), _berhu, of_nothing=0.0),
    Case(
        "nnconv5",
        _nnconv5_inputs,
        ("x", *_NNCONV5_WEIGHTS, "skip"),
        _nnconv5,
        shared=_NNCONV5_WEIGHTS,
        layer=True,
        small={"height": 2, "width": 3, "channels": 2, "out_channels": 3},
    ),
    Case(
        "conv_stack",
        _stack_inputs,
        (),
        _stack,
        shared=("dense_weight", "dense_bias", "dw_weight", "dw_bias", "weight", "bias", "weight_2", "bias_2"),
        kernels=False,
        layer=True,
    ),
]
KERNEL_CASES = [case for case in CASES if case.kernels]


def assert_empty(case, inputs, outputs, grads):
    """What `gradients` returns for a batch of 0: nothing, or the scalar loss of nothing, and no gradient."""
    if outputs[0].dim() > 1:
        assert outputs[0].shape[0] == 0
    else:
        want = torch.full_like(outputs[0], case.of_nothing)
        torch.testing.assert_close(outputs[0], want, rtol=0, atol=0, equal_nan=True)
    for name, grad in zip(case.differentiable, grads):
        assert grad.shape == inputs[name].shape and (name in case.shared or grad.shape[0] == 0)
        assert not grad.any()


def gradients(case, backend, inputs, weight_seed=1):
    """Outputs and the gradients of every differentiable input, for a fixed random weighting of the outputs."""
    leaves = {
        name: value.detach().clone(memory_format=torch.preserve_format).requires_grad_(name in case.differentiable)
        for name, value in inputs.items()
    }
    outputs = case.call(backend, **leaves)
    if not case.differentiable:
        assert not any(o.requires_grad for o in outputs)
        return outputs, []
    generator = torch.Generator().manual_seed(weight_seed)
    weights = [torch.rand(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outputs]
    total = sum((w * o).sum() for w, o in zip(weights, outputs))
    return outputs, list(torch.autograd.grad(total, [leaves[name] for name in case.differentiable]))
