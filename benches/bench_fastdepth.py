"""FastDepth, whole, and its decoder's blocks one by one in both layouts, all in turn within one process."""

import os
import statistics
import time

import pytest
import torch
from torch import nn

from mdepth_fast import ops
from mdepth_fast.benchmark import CASES

ROUNDS = int(os.environ.get("MDEPTH_BENCH_ROUNDS", "5"))


@pytest.mark.parametrize("name", ["fastdepth", "fastdepth_pruned"])
def test_fastdepth(compare, name):
    compare(name)


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
def test_decoder(benchmark):
    """Five blocks, batch 1: `ops.nnconv5` against eager, both in either layout; batch norms as they are and folded."""
    layouts = {"planes": torch.contiguous_format, "pixels": torch.channels_last}
    times = {}
    steps = []
    for channels in (1024, 512, 256, 128, 64):
        case = CASES[f"nnconv5_{channels}"]
        inputs = case.inputs(*case.size)
        want = ops.nnconv5(**{name: value.double() for name, value in inputs.items()}, backend="reference")
        for layout, memory_format in layouts.items():
            x = inputs["x"].contiguous(memory_format=memory_format)
            weights = {name: value for name, value in inputs.items() if name != "x"}
            variants = {"fused": lambda x, weights=weights: ops.nnconv5(x, **weights)}
            for folded in (False, True):
                block = plain_block(inputs, folded).to(memory_format=memory_format)
                variants["folded" if folded else "eager"] = block
            for variant, call in variants.items():
                error = (call(x) - want).norm() / want.norm()
                assert error < 1e-5, f"{variant}, {layout}, {channels} channels: off by {error:.2g}"
                times[variant, layout, channels] = []
                steps.append((times[variant, layout, channels], call, x))

    def all_in_turn():
        for measured, call, x in steps:
            call(x)  # another one has just emptied the caches
            for _ in range(3):
                start = time.perf_counter()
                call(x)
                measured.append(time.perf_counter() - start)

    with torch.no_grad():
        benchmark.pedantic(all_in_turn, rounds=4 * ROUNDS, warmup_rounds=1)
    medians = {key: statistics.median(measured) for key, measured in times.items()}
    print(f"\ndecoder blocks, ms, {torch.get_num_threads()} threads: eager / folded / fused")
    for channels in (1024, 512, 256, 128, 64):
        for layout in layouts:
            shown = (f"{1e3 * medians[variant, layout, channels]:.2f}" for variant in ("eager", "folded", "fused"))
            print(f"  {channels:5} channels, {layout}: " + " / ".join(shown))
    totals = {
        variant: min(sum(medians[variant, layout, c] for c in (1024, 512, 256, 128, 64)) for layout in layouts)
        for variant in ("eager", "folded", "fused")
    }
    ratios = {variant: totals[variant] / totals["fused"] for variant in ("eager", "folded")}
    benchmark.extra_info.update(totals, **{f"ratio_{variant}": ratio for variant, ratio in ratios.items()})
    print("  whole decoder, the better layout of each: " + ", ".join(f"{r:.2f}x {v}" for v, r in ratios.items()))
