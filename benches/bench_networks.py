"""Networks for inference against others' code, beyond the cases of `bench_ops.py`."""

import os

import pytest
import torch
from torch import nn

from mdepth_fast import ops
from mdepth_fast.bench.cases import CASES
from mdepth_fast.models import DPT, DepthAnythingV2
from mdepth_fast.models.dpt import GEOMETRIES, DPTGeometry
from mdepth_fast.models.vit import as_published

ROUNDS = int(os.environ.get("MDEPTH_BENCH_ROUNDS", "5"))
CHANNELS = (1024, 512, 256, 128, 64)


def test_dpt_large(in_turn, device, full):
    """DPT-Large, batch 1, against transformers' DPTForDepthEstimation with the same weights; bfloat16 on a GPU.

    --full (or MDEPTH_BENCH_DPT=full) runs the published network at 384x384, two of 1.4 GB; the default has its widths,
    but four transformer blocks, at 192x192.
    """
    transformers = pytest.importorskip("transformers")
    full = full or os.environ.get("MDEPTH_BENCH_DPT") == "full"
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    geometry = GEOMETRIES["large"] if full else DPTGeometry(1024, 4, 16, (0, 1, 2, 3), GEOMETRIES["large"].widths)
    config = transformers.DPTConfig(
        hidden_size=geometry.dim,
        num_hidden_layers=geometry.depth,
        num_attention_heads=geometry.heads,
        intermediate_size=4 * geometry.dim,
        backbone_out_indices=list(geometry.taps),
        neck_hidden_sizes=list(geometry.widths),
        fusion_hidden_size=geometry.features,
        layer_norm_eps=1e-6,
    )
    torch.manual_seed(0)
    ours, plain = DPT(geometry).eval(), transformers.DPTForDepthEstimation(config).eval()
    plain.load_state_dict(ours.transformers_state_dict())
    ours, plain = ours.to(device, dtype).optimize_for_inference(), plain.to(device, dtype)
    side = 384 if full else 192
    x = torch.rand(1, 3, side, side, device=device, dtype=dtype)
    steps = {
        "transformers": torch.inference_mode()(lambda: plain(2 * x - 1).predicted_depth),
        "mdepth_fast": torch.inference_mode()(lambda: ours(x)[:, 0]),
    }
    expected, got = (step() for step in steps.values())
    torch.testing.assert_close(got, expected, **({} if device.type == "cpu" else {"rtol": 0.05, "atol": 0.05}))
    title = "DPT-Large, `optimize_for_inference()`" if full else ""
    in_turn("dpt_large" if full else "dpt_large_reduced", f"1x{side}x{side}", steps, title=title)


@torch.no_grad()
def test_depth_anything(in_turn, device, full):
    """Depth Anything V2, batch 1, against transformers' DepthAnythingForDepthEstimation with the same random weights.

    In float32 they agree within 1e-5 of each value on a CPU. --full runs small, base and large at 518x518, 518x686 and
    252x336, and small in bfloat16; the default is small at 252x336.
    """
    pytest.importorskip("transformers")
    from plain_depth_anything import randomise, theirs

    sizes = [(518, 518), (518, 686), (252, 336)]
    cases = [(name, size, torch.float32) for name in ("small", "base", "large") for size in sizes]
    cases += [("small", (518, 518), torch.bfloat16)]
    for name, size, dtype in cases if full else [("small", (252, 336), torch.float32)]:
        torch.manual_seed(0)
        ours = DepthAnythingV2(name, position_offset=None).eval()
        randomise(ours)
        ours.depth_head.scratch.output_conv2[2].bias.fill_(6)
        plain = theirs(ours.geometry)
        ours.load_state_dict(ours.translate(plain_state(plain, ours)))
        ours, plain = ours.to(device), plain.to(device)
        x = torch.rand(1, 3, *size, device=device)
        mean, std = (x.new_tensor(one).view(3, 1, 1) for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        expected, got = plain((x - mean) / std).predicted_depth, ours(x)[:, 0]
        difference = ((got - expected).abs() / expected.abs()).max().item()
        print(f"\n{name} at {size[0]}x{size[1]}: largest relative difference {difference:.2g}")
        assert expected.std() > 0.01 and (difference <= 1e-5 or device.type == "cuda")
        ours, plain, x = ours.to(dtype), plain.to(dtype), x.to(dtype)
        fast, prepared = ours.optimize_for_inference(), ((x - mean) / std).to(dtype)
        steps = {
            "transformers": torch.inference_mode()(lambda: plain(prepared).predicted_depth),  # noqa: B023
            "mdepth_fast eager": torch.inference_mode()(lambda: ours(x)[:, 0]),  # noqa: B023
            "mdepth_fast": torch.inference_mode()(lambda: fast(x)[:, 0]),  # noqa: B023
        }
        suffix = "" if dtype == torch.float32 else "_bf16"
        in_turn(f"depth_anything_v2_{name}{suffix}", f"1x{size[0]}x{size[1]}", steps)


def plain_state(plain, ours):
    """The weights of `ours` under the names that transformers has in memory, which `plain` takes; then its state."""
    own = plain.state_dict()
    state = ours.transformers_state_dict()
    for name in own:
        published = name if name in state else next(iter(as_published({name: None})))
        own[name] = state[published]
    plain.load_state_dict(own)
    return plain.state_dict()


def plain_block(inputs, folded):
    """A block of the decoder as it is usually written, its batch norms as modules or folded into the weights."""
    dw_weight, pw_weight = inputs["dw_weight"], inputs["pw_weight"]
    layers = []
    for weight, scale, shift in (
        (dw_weight, inputs["dw_scale"], inputs["dw_shift"]),
        (pw_weight, inputs["pw_scale"], inputs["pw_shift"]),
    ):
        outputs, per_group, kernel, _ = weight.shape
        groups = outputs if kernel > 1 else 1
        conv = nn.Conv2d(per_group * groups, outputs, kernel, 1, kernel // 2, groups=groups, bias=folded)
        conv.weight.data.copy_(weight * scale[:, None, None, None] if folded else weight)
        layers.append(conv)
        if folded:
            conv.bias.data.copy_(shift)
        else:
            norm = nn.BatchNorm2d(outputs, eps=0.0)
            norm.weight.data.copy_(scale)
            norm.bias.data.copy_(shift)
            layers.append(norm)
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers, nn.Upsample(scale_factor=2)).eval().requires_grad_(False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="gpu: the layouts of the CPU's kernels")
def test_decoder(in_turn):
    """The blocks of FastDepth's decoder, batch 1, in both layouts: `ops.nnconv5` against eager, batch norms as they are
    and folded into the weights."""
    layouts = {"planes": torch.contiguous_format, "pixels": torch.channels_last}
    blocks = {f"{variant}, {layout}": [] for variant in ("eager", "folded", "mdepth_fast") for layout in layouts}
    for channels in CHANNELS:
        case = CASES[f"nnconv5_{channels}"]
        inputs = case.inputs(*case.size)
        want = ops.nnconv5(**{name: value.double() for name, value in inputs.items()}, backend="reference")
        for layout, memory_format in layouts.items():
            x = inputs["x"].contiguous(memory_format=memory_format)
            weights = {name: value for name, value in inputs.items() if name != "x"}
            variants = {"mdepth_fast": lambda x, weights=weights: ops.nnconv5(x, **weights)}
            for folded in (False, True):
                block = plain_block(inputs, folded).to(memory_format=memory_format)
                variants["folded" if folded else "eager"] = block
            for variant, call in variants.items():
                error = (call(x) - want).norm() / want.norm()
                assert error < 1e-5, f"{variant}, {layout}, {channels} channels: off by {error:.2g}"
                blocks[f"{variant}, {layout}"].append((call, x))

    def whole(parts):
        @torch.no_grad()
        def run():
            for call, x in parts:
                call(x)

        return run

    in_turn(
        "fastdepth_decoder", "1x1024x7x7", {name: whole(parts) for name, parts in blocks.items()}, rounds=12 * ROUNDS
    )
