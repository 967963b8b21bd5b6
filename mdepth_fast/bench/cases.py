"""What is measured: an entry per op, and the losses and networks built from them.

A new op needs one entry here, `_add(Case(...))`: `mdepth-fast bench`, `benches/` and the tables follow.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdepth_fast import ops
from mdepth_fast.evaluation import get_protocol
from mdepth_fast.geometry import backproject, invert_pose, pose_matrix
from mdepth_fast.losses import MonodepthLoss, Vid2DepthLoss
from mdepth_fast.models import DepthModel, create_model
from mdepth_fast.ops.nnconv5 import reference as nnconv5_reference

__all__ = ["CASES", "GPU_CASES", "MOTION_SCENES", "Case", "lidar_frame", "network", "scene"]


@dataclass(frozen=True)
class Case:
    """One thing to measure: `inputs(batch, height, width)` gives tensors by name, `call(**tensors)` takes them.

    `call` may be the name of a network: plain PyTorch runs it as it is, in eval mode, the backends run its copy for
    inference. Tensors named in `differentiable` get gradients; without any only the forward is run. Bytes and
    operations are the least that any kernel could do; the larger of their times is the floor. `plain` is what plain
    PyTorch runs instead of the reference, all tensors of `dtype`; on a GPU in the faster layout of its images.
    """

    name: str
    op: str
    inputs: Callable[[int, int, int], dict[str, Any]]
    differentiable: tuple[str, ...]
    call: Callable[..., Tensor] | str
    bytes_per_pixel: float  # of forward + backward, every input read and every output written once a pass
    flops_per_pixel: float  # of forward + backward
    bytes_of_weights: float = 0  # read once, whatever the size
    plain: Callable[..., Tensor] | None = None
    dtype: torch.dtype = torch.float32  # of the products
    tf32: bool = False  # a GPU may round the factors of float32
    size: tuple[int, int, int] = (4, 192, 640)  # batch, height and width by default
    gpu_batch: int = 12  # the batch where a GPU is measured
    # Largest error. float32 flips the winner of a few pixels of the losses; anything beyond that is a wrong kernel.
    tolerance: float = 0.05
    group: str = ""  # cases of one group are added up in a row of the README


CASES: dict[str, Case] = {}


def _add(case: Case) -> None:
    CASES[case.name] = case


def scene(
    batch: int,
    height: int,
    width: int,
    sources: int = 2,
    scales: int = 4,
    *,
    seed: int = 0,
    motion: float = 0.02,
    cell: int = 8,
) -> dict[str, Any]:
    """A smooth random target, sources that resemble it, depth maps and small motions; seeded.

    `motion` scales the rotations (radians) and translations (as a share of 0.3 depth units), both normal. The image
    is interpolated from random colours every `cell` pixels; 1 makes it white noise.
    """
    generator = torch.Generator().manual_seed(seed)

    def smooth(channels: int, cell: int) -> Tensor:
        coarse = torch.rand(batch, channels, height // cell + 2, width // cell + 2, generator=generator)
        return F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True).clamp(0.02, 0.98)

    target = smooth(3, cell)
    shifted = [
        torch.roll(target, 2 + s, -1) + 0.02 * torch.rand(target.shape, generator=generator) for s in range(sources)
    ]
    K = torch.tensor([[0.58 * width, 0, (width - 1) / 2], [0, 1.92 * height, (height - 1) / 2], [0, 0, 1]])
    vectors = motion * torch.randn(batch, sources, 6, generator=generator)
    return {
        "target": target,
        "sources": torch.stack(shifted, 1).clamp(0, 1),
        "disparities": [smooth(1, 16)[..., :: 2**s, :: 2**s] * 0.05 + 0.01 for s in range(scales)],
        "depths": [2 + 6 * smooth(1, 2 ** (3 + s)) for s in range(scales)],
        "K": K.repeat(batch, 1, 1),
        "T": pose_matrix(0.3 * vectors[..., :3], vectors[..., 3:]),
    }


# The scenes on which the gradients of the reprojection losses are compared with float64: keywords of `scene`.
MOTION_SCENES: dict[str, dict[str, Any]] = {
    "random": {"cell": 1},
    "smooth": {"cell": 32},
    "near-identity motion": {"motion": 1e-4},
    "large motion": {"motion": 0.2},
}


def _inverse_warp_inputs(batch: int, height: int, width: int) -> dict[str, Any]:
    s = scene(batch, height, width, 1, 1)
    return {"source": s["sources"][:, 0], "depth": s["depths"][0], "K": s["K"], "T": s["T"][:, 0]}


_add(
    Case(
        "inverse_warp",
        "inverse_warp",
        _inverse_warp_inputs,
        ("source", "depth", "T"),
        lambda **t: ops.inverse_warp(**t)[0],
        bytes_per_pixel=29 + 44,  # source, depth, warped, valid; gradient, source, depth and both gradients
        flops_per_pixel=94 + 140,
    )
)


def _photometric_loss_inputs(batch: int, height: int, width: int) -> dict[str, Any]:
    s = scene(batch, height, width, 1, 1)
    return {"prediction": s["sources"][:, 0], "target": s["target"]}


_add(
    Case(
        "photometric_loss",
        "photometric_loss",
        _photometric_loss_inputs,
        ("prediction",),
        ops.photometric_loss,
        bytes_per_pixel=28 + 40,  # both images, loss; its gradient, both images, one image's gradient
        flops_per_pixel=414 + 540,
    )
)


def _edge_aware_smoothness_inputs(batch: int, height: int, width: int) -> dict[str, Any]:
    s = scene(batch, height, width, 1, 1)
    return {"disparity": s["disparities"][0], "image": s["target"]}


_add(
    Case(
        "edge_aware_smoothness",
        "edge_aware_smoothness",
        _edge_aware_smoothness_inputs,
        ("disparity",),
        ops.edge_aware_smoothness,
        bytes_per_pixel=20 + 8,  # disparity, image, gradient; the gradient times a number
        flops_per_pixel=75,
    )
)


def _flow_inputs(batch: int, height: int, width: int, **keywords: Any) -> dict[str, Any]:
    """Two frames and a smooth flow of some pixels with a little noise."""
    s = scene(batch, height, width, 1, 1, **keywords)
    generator = torch.Generator().manual_seed(keywords.get("seed", 0))
    flow = torch.stack([8 * (s["depths"][0][:, 0] - 5), 30 * (s["disparities"][0][:, 0] - 0.03)], 1)
    return {
        "target": s["target"],
        "source": s["sources"][:, 0],
        "flow": flow + 0.1 * torch.randn(flow.shape, generator=generator),
    }


def _flow_smoothness(flow: Tensor, target: Tensor, source: Tensor) -> Tensor:
    return ops.flow_smoothness_loss(flow)


def _flow_loss(target: Tensor, source: Tensor, flow: Tensor) -> Tensor:
    return ops.flow_photometric_loss(target, source, flow) + ops.flow_smoothness_loss(flow)


_add(
    Case(
        "flow_warp",
        "flow_warp",
        lambda *sizes: {name: value for name, value in _flow_inputs(*sizes).items() if name != "target"},
        ("source", "flow"),
        lambda **t: ops.flow_warp(**t)[0],
        bytes_per_pixel=33 + 52,  # source, flow, warped, valid; gradient, source, flow and both gradients
        flops_per_pixel=60 + 100,
        size=(4, 384, 512),
    )
)

_add(
    Case(
        "flow_photometric_loss",
        "flow_photometric_loss",
        _flow_inputs,
        ("flow",),
        ops.flow_photometric_loss,
        bytes_per_pixel=40 + 16,  # both images, flow, gradient; the gradient times a number
        flops_per_pixel=120 + 2,
        size=(4, 384, 512),
    )
)

_add(
    Case(
        "flow_smoothness_loss",
        "flow_smoothness_loss",
        _flow_inputs,
        ("flow",),
        _flow_smoothness,
        bytes_per_pixel=16 + 16,  # flow, gradient; the gradient times a number
        flops_per_pixel=4 * 45 + 2,
        size=(4, 384, 512),
    )
)

_add(
    Case(
        "flow_loss",
        "flow_photometric_loss",
        _flow_inputs,
        ("flow",),
        _flow_loss,
        bytes_per_pixel=40 + 8,  # both images, flow, gradient; a gradient times a number, in place
        flops_per_pixel=120 + 4 * 45 + 2,
        size=(4, 384, 512),
    )
)


def _disparity_to_depth_inputs(batch: int, height: int, width: int) -> dict[str, Any]:
    """A decoder's map of scale 2, and an image of the size of the depth."""
    s = scene(batch, height, width, 1, 3)
    return {"disparity": s["disparities"][2], "image": s["target"]}


_add(
    Case(
        "disparity_to_depth",
        "disparity_to_depth",
        _disparity_to_depth_inputs,
        ("disparity",),
        lambda disparity, image: ops.disparity_to_depth(disparity, image.shape[2:]),
        bytes_per_pixel=4 + 8 + 2 * 4 / 16,  # depth; depth and its gradient; the map and its gradient
        flops_per_pixel=8 + 5,
    )
)


def _min_reprojection_inputs(batch: int, height: int, width: int, **keywords: Any) -> dict[str, Any]:
    s = scene(batch, height, width, **keywords)
    return {name: s[name] for name in ("target", "sources", "depths", "K", "T")}


def _min_reprojection(target: Tensor, sources: Tensor, depths: list[Tensor], K: Tensor, T: Tensor) -> Tensor:
    return ops.min_reprojection(target, sources, depths, K, T).loss


_add(
    Case(
        "min_reprojection",
        "min_reprojection",
        _min_reprojection_inputs,
        ("depths", "T"),
        _min_reprojection,
        # Target and 2 sources once; each of 4 scales: depth, gradient, selection, the gradient times a number.
        bytes_per_pixel=36 + 4 * (9 + 8),
        # Each scale and source: warp 94, SSIM and L1 294, choice 4, window adjoint 45, gradient 111; shared: 708.
        flops_per_pixel=8 * 548 + 708,
    )
)


def _monodepth_loss_inputs(batch: int, height: int, width: int, **keywords: Any) -> dict[str, Any]:
    s = scene(batch, height, width, **keywords)
    return {name: s[name] for name in ("target", "sources", "disparities", "K", "T")}


def _monodepth_loss(target: Tensor, sources: Tensor, disparities: list[Tensor], K: Tensor, T: Tensor) -> Tensor:
    return MonodepthLoss()(disparities, target, sources, K, T)


_add(
    Case(
        "monodepth_loss",
        "min_reprojection",
        _monodepth_loss_inputs,
        ("disparities", "T"),
        _monodepth_loss,
        bytes_per_pixel=36 + 4 + 11,  # images, selections, disparities and their gradients
        flops_per_pixel=8 * 548 + 708 + 220,
    )
)


def _view_synthesis_loss_inputs(batch: int, height: int, width: int, **keywords: Any) -> dict[str, Any]:
    s = scene(batch, height, width, **{"sources": 1, "scales": 1, **keywords})
    return {
        "target": s["target"],
        "source": s["sources"][:, 0],
        "depth": s["depths"][0],
        "K": s["K"],
        "T": s["T"][:, 0],
    }


def _view_synthesis_loss(**tensors: Any) -> Tensor:
    l1, ssim = ops.view_synthesis_loss(**tensors)
    return 0.85 * l1 + 0.15 * ssim


_add(
    Case(
        "view_synthesis_loss",
        "view_synthesis_loss",
        _view_synthesis_loss_inputs,
        ("depth", "T"),
        _view_synthesis_loss,
        bytes_per_pixel=28 + 8 + 12,  # images, depth, a gradient of each term; the gradients times a number
        # Warp 94, L1 12, the target's moments 60, SSIM 282, window adjoint 45, both gradients 150.
        flops_per_pixel=643,
        size=(4, 128, 416),
    )
)


def _vid2depth_loss_inputs(batch: int, height: int, width: int, **keywords: Any) -> dict[str, Any]:
    """Three frames; the target is the middle one. Small motions there and back."""
    s = scene(batch, height, width, **keywords)
    first, last = s["sources"].unbind(1)
    there = s["T"]
    return {
        "disparities": [one[:, None].repeat(1, 3, 1, 1, 1) for one in s["disparities"]],
        "images": torch.stack([first, s["target"], last], 1),
        "K": s["K"],
        "T": torch.stack([there, invert_pose(there)], 2).flatten(1, 2),
    }


_add(
    Case(
        "vid2depth_loss",
        "view_synthesis_loss",
        _vid2depth_loss_inputs,
        ("disparities", "T"),
        # Without the term of ICP, which has a case of its own, and which the published program leaves out by default.
        lambda disparities, images, K, T: Vid2DepthLoss(icp=0.0)(disparities, images, K, T),
        # A pixel of the middle frame stands for one of each frame and scale.
        bytes_per_pixel=1.33 * 3 * (12 + 8),  # images, disparities and their gradients
        flops_per_pixel=1.33 * (4 * 643 + 3 * 75),
        size=(4, 128, 416),
    )
)


def _ordinal_loss_inputs(batch: int, height: int, width: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    thresholds = torch.logspace(0, 1.9, 81)  # 80 bins, spaced as in DORN
    logits = 3 * torch.randn(batch, 160, height, width, generator=generator)
    return {
        "logits": logits,
        "depth": 1 + 78 * scene(batch, height, width, 1, 1)["disparities"][0] / 0.06,
        "thresholds": thresholds,
    }


def _ordinal_decode_inputs(batch: int, height: int, width: int) -> dict[str, Any]:
    inputs = _ordinal_loss_inputs(batch, height, width)
    return {name: inputs[name] for name in ("logits", "thresholds")}


_add(
    Case(
        "ordinal_decode",
        "ordinal_decode",
        _ordinal_decode_inputs,
        (),
        lambda **t: ops.ordinal_decode(**t)[0],
        bytes_per_pixel=160 * 4 + 4 + 8,  # logits, depth, label
        flops_per_pixel=80 * 2,
        size=(2, 385, 513),
        gpu_batch=8,
    )
)

_add(
    Case(
        "ordinal_loss",
        "ordinal_loss",
        _ordinal_loss_inputs,
        ("logits",),
        ops.ordinal_loss,
        bytes_per_pixel=3 * 160 * 4 + 8,  # logits twice and their gradient once
        flops_per_pixel=80 * 40,
        size=(2, 385, 513),
        gpu_batch=8,
    )
)


def _sparse_inputs(batch: int, height: int, width: int) -> dict[str, Any]:
    """Ground truth as dense as an annotated LiDAR frame: a fifth of the pixels, without order."""
    generator = torch.Generator().manual_seed(0)
    depth = 1 + 78 * scene(batch, height, width, 1, 1)["disparities"][0] / 0.06
    prediction = depth * torch.exp(0.2 * torch.randn(depth.shape, generator=generator))
    return {
        "prediction": prediction,
        "depth": depth.masked_fill(torch.rand(depth.shape, generator=generator) > 0.2, 0.0),
    }


_add(
    Case(
        "silog_loss",
        "silog_loss",
        _sparse_inputs,
        ("prediction",),
        lambda **t: ops.silog_loss(**t, valid="measured"),
        bytes_per_pixel=2 * 8 + 4,  # both maps twice, the gradient
        flops_per_pixel=0.2 * 2 * 35,
        size=(8, 352, 1216),
        gpu_batch=32,
    )
)

_add(
    Case(
        "berhu_loss",
        "berhu_loss",
        _sparse_inputs,
        ("prediction",),
        lambda **t: ops.berhu_loss(**t, valid="measured"),
        bytes_per_pixel=3 * 8 + 4,  # both maps for the largest error, the cost and the gradient
        flops_per_pixel=15,
        size=(8, 352, 1216),
        gpu_batch=32,
    )
)


def lidar_frame(batch: int, height: int, width: int, scans: int = 1) -> dict[str, Any]:
    """Depth maps and ground truth as a LiDAR gives it: rows of points below the horizon, one pixel in thirty a scan."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.arange(height)[:, None], torch.arange(width)
    depth = (70 * height / (height + 14 * (y - 0.4 * height).clamp(min=0))).expand(batch, 1, height, width)
    beam = (y + 3 * torch.cos(4.0 * x / width)).round() % 6 == 0  # a horizontal circle, seen from above it
    kept = torch.rand(batch, 1, height, width, generator=generator)
    hit = beam & (x % 2 == 0) & (kept < 0.7) if scans == 1 else kept < 0.7 * scans / 24  # they overlap
    hit = hit & (y > 0.4 * height)
    error = 0.15 * torch.randn(batch, 1, height, width, generator=generator)
    return {"prediction": depth * error.exp(), "ground_truth": torch.where(hit, depth, 0).float()}


def _depth_metrics(prediction: Tensor, ground_truth: Tensor) -> Tensor:
    window = get_protocol("kitti_garg_80").window(prediction.shape[-2], prediction.shape[-1])
    return ops.depth_metrics(prediction, ground_truth, window=window)


_add(
    Case(
        "depth_metrics",
        "depth_metrics",
        lidar_frame,
        (),
        _depth_metrics,
        bytes_per_pixel=0.54 * (4 + 0.06 * 4),  # of the window: ground truth, predictions where it is
        flops_per_pixel=0.54 * 0.06 * 80,
        size=(1, 375, 1242),
        gpu_batch=8,
    )
)


def _clouds(batch: int, height: int, width: int) -> dict[str, Any]:
    """Organised clouds of smooth depth, 2 to 8 units away, a small motion apart; ICP starts at the identity."""
    s = scene(batch, height, width, 1, 4)
    points = backproject(s["depths"][3], s["K"])
    axis_angle, shift = torch.tensor([0.001, -0.002, 0.001]), torch.tensor([0.01, -0.005, 0.02])
    T = pose_matrix(axis_angle, shift, invert=True)
    source = T[:3, :3] @ points.flatten(2) + T[:3, 3:]
    return {
        "source_points": source.mT.unflatten(1, (height, width)).contiguous(),
        "target_points": points.permute(0, 2, 3, 1).contiguous(),
        "init": torch.eye(4).repeat(batch, 1, 1),
    }


_add(
    Case(
        "icp_align",
        "icp_align",
        _clouds,
        ("source_points",),
        lambda **t: ops.icp_align(**t).residual,
        bytes_per_pixel=11 * 2 * 12 + 13 + 25,  # both clouds in 10 iterations and at the end, residual, mask; gradient
        flops_per_pixel=11 * (49 * 9 + 60) + 15,
        size=(4, 128, 416),
        gpu_batch=4,  # not yet run on a GPU
    )
)


def _nnconv5_case(channels: int, outputs: int, side: int, gpu_batch: int = 32, kind: str = "") -> Case:
    """One block of FastDepth's decoder in inference; a pixel is one of its input."""

    def inputs(batch: int, height: int, width: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        tensors = {
            "x": normal(batch, channels, height, width),
            "dw_weight": normal(channels, 1, 5, 5) / 5,
            "dw_scale": normal(channels).abs(),
            "dw_shift": normal(channels),
            "pw_weight": normal(outputs, channels, 1, 1) / channels**0.5,
            "pw_scale": normal(outputs).abs(),
            "pw_shift": normal(outputs),
        }
        rounded = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        return {name: one if name in ("x", "pw_weight") else one.float() for name, one in rounded.items()}

    dtype = torch.float16 if kind == "_fp16" else torch.float32
    return Case(
        f"nnconv5_{channels}{kind}" + "_single" * (gpu_batch == 1),
        "nnconv5",
        inputs,
        (),
        ops.nnconv5,
        bytes_per_pixel=dtype.itemsize * (channels + 4 * outputs),
        flops_per_pixel=2 * channels * (25 + outputs),
        bytes_of_weights=dtype.itemsize * channels * (outputs + 27),
        plain=nnconv5_reference,
        dtype=dtype,
        tf32=kind == "_tf32",
        size=(1, side, side),
        gpu_batch=gpu_batch,
        tolerance=5e-3 if kind else 1e-5,
        group="nnconv5, the five stages of FastDepth's decoder",
    )


_DECODER = ((1024, 512, 7), (512, 256, 14), (256, 128, 28), (128, 64, 56), (64, 32, 112))
for _shape in _DECODER:
    _add(_nnconv5_case(*_shape))

# What is measured on a GPU beyond `CASES`: a single image, TF32 and half precision.
GPU_CASES: dict[str, Case] = {
    case.name: case
    for case in (
        _nnconv5_case(*shape, gpu_batch, kind)
        for kind in ("", "_tf32", "_fp16")
        for gpu_batch in ((32, 1) if kind else (1,))
        for shape in _DECODER
    )
}


def _unorganised(batch: int, height: int, width: int) -> dict[str, Any]:
    """The clouds of `icp_align` in the order of their pixels, but without their rows."""
    inputs = _clouds(batch, height, width)
    return {name: one if name == "init" else one.flatten(1, 2) for name, one in inputs.items()}


# Not yet run on a GPU. On a CPU plain PyTorch would compare all pairs for a minute.
GPU_CASES["icp_align_cloud"] = Case(
    "icp_align_cloud",
    "icp_align",
    _unorganised,
    ("source_points",),
    lambda **t: ops.icp_align(**t).residual,
    bytes_per_pixel=11 * 2 * 12 + 13 + 25,
    flops_per_pixel=11 * (49 * 9 + 60) + 15,  # as for organised clouds: no search compares fewer
    size=(4, 64, 208),
    gpu_batch=4,
)


def _network_case(name: str, macs: float, parameters: int) -> Case:
    """A network on an image of 224 x 224, the weights read once."""

    def inputs(batch: int, height: int, width: int) -> dict[str, Any]:
        return {"images": scene(batch, height, width, 1, 1)["target"]}

    return Case(
        name,
        "conv_stack",
        inputs,
        (),
        name,
        bytes_per_pixel=12 + 4,
        flops_per_pixel=2 * macs / 224**2,
        bytes_of_weights=4 * parameters,
        size=(1, 224, 224),
        gpu_batch=32,
        tolerance=1e-4,
    )


_add(_network_case("fastdepth", macs=0.7367e9, parameters=3_933_088))
_add(_network_case("fastdepth_pruned", macs=0.3664e9, parameters=1_343_664))


def as_if_trained(model: nn.Module) -> None:
    """Gives the batch norms of a network without gradients random statistics, as training would leave some."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
            nn.init.normal_(layer.running_mean, 0.0, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, 0.1, 0.1)
        if isinstance(layer, nn.Conv2d) and layer.out_channels == 1:
            layer.weight.abs_()  # or the ReLU behind it may leave nothing


def network(name: str, fast: bool, like: Tensor) -> nn.Module:
    """A network in eval mode, its batch norms with statistics as after training, or its copy for inference; seeded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(name).eval().requires_grad_(False)
        assert isinstance(model, DepthModel)
        as_if_trained(model)
    model = model.to(dtype=like.dtype, device=like.device)
    return model.optimize_for_inference() if fast else model
