import math

import numpy as np
import oracles
import pytest
import torch
from cases import CASES, awkward_metrics

from mdepth_fast import _native
from mdepth_fast.ops import DEPTH_SUMS, depth_metrics

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])
INPUTS = next(case.inputs for case in CASES if case.name == "depth_metrics")


def sums(prediction, ground_truth, **options):
    """The sums of one row of pixels, by name."""
    row = [torch.tensor(values, dtype=torch.float64).view(1, 1, -1) for values in (prediction, ground_truth)]
    return dict(zip(DEPTH_SUMS, depth_metrics(*row, **options)[0].tolist()))


@BACKENDS
def test_four_pixels_by_hand(backend):
    # A fifth has no ground truth.
    found = sums([2.0, 3.0, 5.0, 4.0, 9.0], [1.0, 3.0, 4.0, 8.0, 0.0], backend=backend)
    ln2, ln54 = math.log(2), math.log(1.25)
    assert found == pytest.approx(
        {
            "count": 4,
            "abs_rel": 1 + 0 + 0.25 + 0.5,
            "sq_rel": 1 + 0 + 0.25 + 2,
            "sq_rel_kitti": 1 + 0 + 1 / 16 + 1 / 4,
            "sq_error": 1 + 0 + 1 + 16,
            "sq_log": 2 * ln2**2 + ln54**2,
            "log": ln54,
            "abs_log": 2 * ln2 + ln54,
            "d1": 1,  # 5 / 4 is not below 1.25
            "d2": 2,
            "d3": 2,
            "sq_inverse": 0.5**2 + 0 + 0.05**2 + 0.125**2,
        },
        rel=1e-14,
    )


@BACKENDS
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_loops(backend, inverse, dtype):
    inputs = INPUTS(2, 13, 75, dtype, seed=4)
    options = {"window": (2, 12, 5, 71), "valid": (1.5, 70.0), "clip": (0.7, 60.0)}
    if inverse:
        inputs["prediction"] = 1 / inputs["prediction"]
        inputs["shift"] /= 100
    found = depth_metrics(**inputs, **options, inverse=inverse, backend=backend)
    for b in range(2):
        maps = (inputs[name][b, 0].double().numpy() for name in ("prediction", "ground_truth"))
        factors = {name: inputs[name][b].item() for name in ("scale", "shift")}
        want = oracles.depth_metrics(*maps, **options, **factors, inverse=inverse)
        assert want[0] > 200 and 20 < want[8] < want[9] < want[10] < want[0]
        np.testing.assert_allclose(found[b].numpy(), want, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_awkward_numbers_and_windows(dtype, isa):
    native, before = _native.module(), _native.instruction_set()
    try:
        native.set_isa(isa)
    except ValueError:
        return
    try:
        for name, arguments in awkward_metrics(dtype).items():
            got, want = (depth_metrics(**arguments, backend=backend) for backend in ("cpu", "reference"))
            torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13, equal_nan=True, msg=name)
    finally:
        native.set_isa(before)


@BACKENDS
def test_what_is_not_finite(backend):
    given = awkward_metrics(torch.float32)
    lost = depth_metrics(**given["nan where it counts"], backend=backend)
    exact = ("count", "d1", "d2", "d3")
    assert lost[0].isnan().tolist() == [name not in exact for name in DEPTH_SUMS]
    assert lost[1].isfinite().all()
    assert depth_metrics(**given["nan where it does not"], backend=backend).isfinite().all()
    assert depth_metrics(**given["infinite prediction"], backend=backend).isfinite().all()
    assert not depth_metrics(**given["nothing counts"], backend=backend).any()


@BACKENDS
def test_ranges_exclude_their_ends_and_deltas_are_strict(backend):
    values = [1e-3, 0.002, 79.0, 80.0, math.nan, math.inf, -1.0]
    assert sums(values, values, backend=backend)["count"] == 2
    exact = sums([4 * 1.25**k for k in (0, 1, 2, 3, -1)], [4.0] * 5, backend=backend)
    assert (exact["d1"], exact["d2"], exact["d3"]) == (1, 3, 4)


def test_logarithms_are_accurate_over_the_whole_range():
    """The kernel has a series of its own."""
    g = torch.logspace(-3, 3, 1001, dtype=torch.float64)
    for ratio in (*np.logspace(-6, 6, 97), 1 + 1e-9, 1 - 1e-15, 2**0.5, 0.5**0.5, 1.5, 1.4999999, 0.75):
        found = depth_metrics((g * ratio)[None, None], g[None, None], valid=(0, 1e4), clip=(1e-12, 1e12))[0]
        error = ((g * ratio - g) / g).numpy()
        want = np.log1p(error) if abs(ratio - 1) < 0.5 else np.log((g * ratio / g).numpy())
        exact = [np.sum(want**2), np.sum(want), np.sum(np.abs(want))]
        np.testing.assert_allclose(found[5:8].numpy(), exact, rtol=1e-14)
    assert depth_metrics(g[None, None], g[None, None], valid=(0, 1e4))[0, 1:8].abs().max() > 0  # clipped at 80
    assert not depth_metrics(g[None, None], g[None, None], valid=(0, 1e4), clip=(1e-4, 1e4))[0, 1:8].any()


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("width", [1, 63, 64, 65, 1030, 2100, 5000])
def test_any_share_and_length_of_rows(share, width):
    ground_truth = 1 + 50 * torch.rand(2, 9, width)
    ground_truth[torch.rand(ground_truth.shape) >= share] = 0
    prediction = ground_truth * (1 + 0.3 * torch.rand(2, 9, width)) + 0.1
    got, want = (depth_metrics(prediction, ground_truth, backend=backend) for backend in ("cpu", "reference"))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_sums_add_up_and_ranks_do_not_matter():
    inputs = INPUTS(3, 20, 30)
    maps = inputs["prediction"], inputs["ground_truth"]
    whole = depth_metrics(*maps)
    parts = [depth_metrics(*maps, window=window) for window in ((0, 7, 0, 30), (7, 20, 0, 11), (7, 20, 11, 30))]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-13, atol=0)
    assert torch.equal(depth_metrics(*(value[:, 0] for value in maps)), whole)
    assert torch.equal(depth_metrics(*(value.clone().requires_grad_() for value in maps)), whole)
    assert torch.equal(depth_metrics(maps[0].double(), maps[1]), depth_metrics(maps[0], maps[1].double()))
    halves = depth_metrics(*maps, scale=torch.full((3,), 0.5), shift=torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(halves, depth_metrics(maps[0] / 2, maps[1]), rtol=1e-12, atol=0)


def test_without_a_limit_under_a_compiler():
    """Infinity goes through a schema and a graph."""
    maps = list(INPUTS(1, 5, 6).values())[:2]
    options = {"valid": (0.0, math.inf), "clip": (1e-3, math.inf)}
    compiled = torch.compile(lambda *maps: depth_metrics(*maps, **options), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*maps), depth_metrics(*maps, **options))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"prediction": [1.0]}, TypeError, r"prediction: expected a tensor \(B, 1, H, W\) or \(B, H, W\), got list"),
        ({"prediction": torch.ones(2, 2, 3, 4)}, ValueError, r"prediction: .*\(any, 1, any, any\), got \(2, 2, 3, 4\)"),
        ({"prediction": torch.ones(3, 4)}, ValueError, r"prediction: expected shape .* got \(3, 4\)"),
        ({"prediction": torch.ones(2, 1, 3, 4).int()}, TypeError, "prediction: expected a floating-point tensor"),
        ({"ground_truth": torch.ones(2, 1, 3, 5)}, ValueError, r"ground_truth: .*= \(2, 1, 3, 4\), got \(2, 1, 3, 5\)"),
        ({"ground_truth": torch.ones(2, 3, 4)}, ValueError, "ground_truth: expected shape of prediction"),
        ({"scale": 2.0}, TypeError, r"scale: expected a tensor \(B,\), got float"),
        ({"shift": torch.ones(1)}, ValueError, r"shift: expected shape \(B,\) = \(2\), got \(1,\)"),
        ({"valid": (2.0, 1.0)}, ValueError, r"valid: expected 0 <= low < high, got \(2.0, 1.0\)"),
        ({"clip": (0.0, 1.0)}, ValueError, r"clip: expected 0 < low < high, got \(0.0, 1.0\)"),
        ({"clip": (1.0, math.inf), "inverse": True}, ValueError, "clip: .* < infinity, as inverse depth has none"),
        ({"window": (0, 4, 0, 4)}, ValueError, r"window: .* within 3x4, got \(0, 4, 0, 4\)"),
        ({"window": (0, 3, 3, 2)}, ValueError, "window: expected"),
        ({"window": (-1, 3, 0, 2)}, ValueError, "window: expected"),
    ],
)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        depth_metrics(**{"prediction": torch.ones(2, 1, 3, 4), "ground_truth": torch.ones(2, 1, 3, 4), **change})
