"""DPT-Large, batch 1, inference, against transformers' DPTForDepthEstimation with the same weights, in turn within one
process, on the GPU (bfloat16) where there is one.

MDEPTH_BENCH_DPT=full runs the published net at 384x384 (two nets of 1.4 GB); the default has its widths, but four
transformer blocks, at 192x192.
"""

import os
import statistics
import time

import pytest
import torch

from mdepth_fast.models import DPT
from mdepth_fast.models.dpt import GEOMETRIES, DPTGeometry

FULL = os.environ.get("MDEPTH_BENCH_DPT") == "full"
ROUNDS = int(os.environ.get("MDEPTH_BENCH_ROUNDS", "5"))
DEVICE, TYPE = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)


def test_dpt_large(benchmark):
    transformers = pytest.importorskip("transformers")
    geometry = GEOMETRIES["large"] if FULL else DPTGeometry(1024, 4, 16, (0, 1, 2, 3), GEOMETRIES["large"].widths)
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
    ours, plain = ours.to(DEVICE, TYPE), plain.to(DEVICE, TYPE)
    side = 384 if FULL else 192
    x = torch.rand(1, 3, side, side, device=DEVICE, dtype=TYPE)
    steps = {"transformers": lambda: plain(2 * x - 1).predicted_depth, "mdepth_fast": lambda: ours(x)[:, 0]}
    times = {name: [] for name in steps}

    @torch.inference_mode()
    def both():
        outputs = []
        for name, step in steps.items():
            start = time.perf_counter()
            outputs.append(step())
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
        return outputs

    expected, got = both()  # also the warm-up
    torch.testing.assert_close(got, expected, **({} if DEVICE == "cpu" else {"rtol": 0.05, "atol": 0.05}))
    for measured in times.values():
        measured.clear()
    benchmark.pedantic(both, rounds=ROUNDS)
    medians = {name: statistics.median(measured) for name, measured in times.items()}
    ratio = statistics.median(p / o for p, o in zip(*times.values(), strict=True))
    benchmark.extra_info.update(medians, ratio=ratio)
    shown = ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in medians.items())
    print(f"\nDPT-Large{'' if FULL else ', reduced'}, {side}x{side}, {DEVICE} {TYPE}: {ratio:.2f}x, {shown}")
