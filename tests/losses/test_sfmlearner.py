"""SfMLearner's objective against plain float64 formulas, its closed forms and its options."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from plain_view_synthesis import area, intrinsics, matrix, tensor, warp

from mdepth_fast.geometry import pose_matrix_from_vector
from mdepth_fast.losses import SfMLearnerLoss
from mdepth_fast.losses.sfmlearner import second_order_smoothness

Array = np.ndarray


def second_order(D: Array) -> float:
    dx, dy = np.diff(D, axis=1), np.diff(D, axis=0)
    terms = (np.diff(dx, axis=1), np.diff(dx, axis=0), np.diff(dy, axis=1), np.diff(dy, axis=0))
    return sum(np.abs(term).mean() for term in terms)


def plain_terms(case: dict[str, Any], grey: bool = True, depth: bool = False, decay: float = 2.0) -> dict[str, float]:
    """One sample; images in [-1, 1], of which 0 is grey."""
    terms = {"photometric": 0.0, "smoothness": 0.0, "explainability": 0.0}
    for s, sigmoid in enumerate(case["maps"]):
        disparity = 10 * sigmoid + 0.01
        target, sources = 2 * area(case["target"], 2**s) - 1, 2 * area(case["sources"], 2**s) - 1
        terms["smoothness"] += second_order(1 / disparity if depth else disparity) / decay**s
        for n, source in enumerate(sources):
            K, source_K = (intrinsics(one, 0.5**s) for one in (case["K"], case["source_K"][n]))
            warped, mask = warp(source, 1 / disparity, K, matrix(case["vectors"][n]), source_K)
            explained = 1 / (1 + np.exp(-case["logits"][s][n]))
            difference = np.abs((warped * mask if grey else warped) - target)
            terms["photometric"] += (difference * explained * (1 if grey else mask)).mean()
            terms["explainability"] -= np.log(explained).mean()
    return terms


def case(seed: int = 0, size: tuple[int, int] = (16, 24), scales: int = 2, sources: int = 2) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    K = np.array([[20.0, 0, 11.3], [0, 18, 7.2], [0, 0, 1]])
    sizes = [(size[0] >> s, size[1] >> s) for s in range(scales)]
    return {
        "target": rng.random((3, *size)),
        "sources": rng.random((sources, 3, *size)),
        "maps": [rng.uniform(0.2, 0.4, one) for one in sizes],
        "logits": [rng.normal(size=(sources, *one)) for one in sizes],
        "K": K,
        "source_K": np.stack([K + np.diag([n, n, 0.0]) for n in range(sources)]),
        "vectors": 0.03 * rng.normal(size=(sources, 6)),
    }


def arguments(one: dict[str, Any]) -> dict[str, Any]:
    return {
        "disparities": [tensor(value)[:, None] for value in one["maps"]],
        "target": tensor(one["target"]),
        "sources": tensor(one["sources"]),
        "K": tensor(one["K"]),
        "source_K": tensor(one["source_K"]),
        "T": pose_matrix_from_vector(tensor(one["vectors"])),
        "explainability": [tensor(value) for value in one["logits"]],
    }


OPTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"explainability": 0.2}, {}),
    (  # SfmLearner-Pytorch
        {"padding": "masked", "smooth": "depth", "smoothness": 0.1, "smoothness_decay": 2.3, "explainability": 0.1},
        {"grey": False, "depth": True, "decay": 2.3},
    ),
]


@pytest.mark.parametrize(("options", "plain"), OPTIONS, ids=["released", "port"])
def test_terms_equal_plain_formulas(options: dict[str, Any], plain: dict[str, Any]) -> None:
    expected = plain_terms(case(), **plain)
    loss, parts = SfMLearnerLoss(**options)(**arguments(case()), return_parts=True)
    for name, value in expected.items():
        assert getattr(parts, name).item() == pytest.approx(value, rel=1e-6), name
    total = expected["photometric"] + options.get("smoothness", 0.5) * expected["smoothness"]
    assert loss.item() == pytest.approx(total + options["explainability"] * expected["explainability"], rel=1e-6)


def test_no_masks_are_masks_of_one() -> None:
    given = arguments(case())
    sure = [torch.full_like(one, 40.0) for one in given["explainability"]]
    loss = SfMLearnerLoss()
    torch.testing.assert_close(loss(**given | {"explainability": None}), loss(**given | {"explainability": sure}))
    assert loss(**given | {"explainability": []}) == loss(**given | {"explainability": None})


def test_a_batch_is_the_mean_of_its_samples() -> None:
    given = [arguments(case(seed)) for seed in range(2)]
    loss = SfMLearnerLoss(explainability=0.2)
    both: dict[str, Any] = {}
    for key in given[0]:
        parts = [one[key] for one in given]
        both[key] = torch.cat(parts) if torch.is_tensor(parts[0]) else [torch.cat(pair) for pair in zip(*parts)]
    torch.testing.assert_close(loss(**both), (loss(**given[0]) + loss(**given[1])) / 2)


def test_second_order_smoothness_in_closed_form() -> None:
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    assert second_order_smoothness((2 * x - 3 * y + 1)[None, None]) == 0  # a plane costs nothing
    assert second_order_smoothness((x * x)[None, None]) == 2
    assert second_order_smoothness((3 * x * y)[None, None]) == 6  # dxy and dyx
    with pytest.raises(ValueError, match="at least 3, got 2x7"):
        second_order_smoothness(torch.rand(1, 1, 2, 7))


def test_masks_learn_to_leave_out_what_moves() -> None:
    """With the motion and depth right but for a square, descent on the logits lowers them in the square alone."""
    image = F.interpolate(torch.rand(1, 3, 8, 12), (32, 48), mode="bilinear")
    source = image.clone()
    source[..., 8:16, 8:16] = 1 - source[..., 8:16, 8:16]
    logits = torch.zeros(1, 1, 32, 48, requires_grad=True)
    K = torch.tensor([[[40.0, 0, 23.5], [0, 40, 15.5], [0, 0, 1]]])
    T = torch.eye(4).expand(1, 1, 4, 4)
    loss = SfMLearnerLoss(explainability=0.2)([torch.full((1, 1, 32, 48), 0.1)], image, source[:, None], K, T, [logits])
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[..., 9:15, 9:15].mean() > 0) and (gradient[..., 18:30, 20:46] < 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "border"}, 'padding: expected "grey" or "masked", got \'border\''),
        ({"smooth": "both"}, "smooth: expected"),
        ({"smoothness_decay": 0}, "smoothness_decay: expected a positive number, got 0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SfMLearnerLoss(**options)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"disparities": []}, TypeError, "disparities: expected a non-empty sequence"),
        ({"disparities": [torch.rand(2, 1, 16, 24)]}, ValueError, r"disparities\[0\]: expected \(1, 1, h, w\)"),
        ({"sources": torch.rand(1, 3, 16, 24)}, ValueError, r"sources: expected \(B, S, 3, H, W\) of images like"),
        ({"T": torch.eye(4)[None]}, ValueError, r"T: expected shape \(1, 2, 4, 4\), got \(1, 4, 4\)"),
        ({"source_K": torch.eye(3)[None]}, ValueError, r"source_K: expected shape \(1, 2, 3, 3\), got \(1, 3, 3\)"),
        ({"explainability": [torch.rand(1, 1, 16, 24)]}, ValueError, "explainability: expected logits of shapes"),
        ({"explainability": None}, ValueError, "explainability: expected logits of masks for the weight 0.2"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SfMLearnerLoss(explainability=0.2)(**arguments(case()) | change)
