"""What all losses refuse: settings and arguments that make no sense, each by its name."""

import math
from typing import Any

import pytest
import torch

from mdepth_fast import losses, ops

WEIGHTS = {
    "FlowLoss": ["smoothness"],
    "GargLoss": ["smoothness"],
    "LeftRightLoss": ["smoothness", "consistency"],
    "MonodepthLoss": ["smoothness", "identity_noise"],
    "SfMLearnerLoss": ["smoothness", "explainability"],
    "Vid2DepthLoss": ["reconstruction", "ssim", "smoothness", "icp"],
}
SHARES = {
    name: ["ssim_weight"] for name in ("LeftRightLoss", "MinReprojectionLoss", "MonodepthLoss", "PhotometricLoss")
}
SETTINGS: list[tuple[str, str, Any]] = [
    *(
        (name, one, bad)
        for name, ones in WEIGHTS.items()
        for one in ones
        for bad in (-1, math.nan, math.inf, "1", None)
    ),
    *((name, one, bad) for name, ones in SHARES.items() for one in ones for bad in (-0.1, 1.1, math.nan, None)),
    *(
        (name, one, bad)
        for name in ("MonodepthLoss", "SfMLearnerLoss", "Vid2DepthLoss")
        for one, bads in (("min_depth", (0, -1, 100.0, math.nan, None)), ("max_depth", (0.0, math.inf, "far")))
        for bad in bads
    ),
    *(("Vid2DepthLoss", "icp_iterations", bad) for bad in (-1, 2.5, None)),
    *(("Icp3DLoss", "iterations", bad) for bad in (-1, 2.5, None)),
    *(("MonodepthLoss", "scales", bad) for bad in ((0, -1), (0, 1.5), ("0",))),
    *(("SfMLearnerLoss", "smoothness_decay", bad) for bad in (0, math.nan, None)),
    *(("FlowLoss", "border", bad) for bad in (-0.1, 0.5, math.nan, None)),
    *(("FlowLoss", f"{kind}alpha", bad) for kind in ("", "smooth_", "outside_") for bad in (0, 1.1, "x")),
    *(("FlowLoss", name, bad) for name in ("scale", "smooth_scale", "epsilon") for bad in (0, math.inf, None)),
    *(("FlowLoss", name, bad) for name, bad in (("form", "both"), ("normalize", 1), ("mean", (0.5,)))),
]


@pytest.mark.parametrize("name", sorted({name for name, _, _ in SETTINGS}))
def test_settings_that_make_no_sense(name: str) -> None:
    for setting, bad in [(setting, bad) for one, setting, bad in SETTINGS if one == name]:
        with pytest.raises((TypeError, ValueError), match=rf"^(min_depth, )?{setting}\b.*: expected .*, got "):
            getattr(losses, name)(**{setting: bad})


def given(name: str) -> dict[str, Any]:
    """Arguments that the loss takes."""
    image, K, eye = torch.rand(1, 3, 16, 24), torch.eye(3)[None], torch.eye(4)
    maps = torch.full((1, 1, 16, 24), 0.5)
    if name in ("LeftRightLoss", "GargLoss"):
        maps = maps.expand(-1, 2 if name == "LeftRightLoss" else 1, -1, -1)
        return {"disparities": [maps], "left": image, "right": image}
    if name == "Vid2DepthLoss":
        stack = {
            "disparities": [maps[:, None].expand(-1, 3, -1, -1, -1)],
            "images": image[:, None].expand(-1, 3, -1, -1, -1),
        }
        return {**stack, "K": K, "T": eye.expand(1, 4, 4, 4)}
    sources = image[:, None].expand(-1, 2, -1, -1, -1)
    both = {"disparities": [maps], "target": image, "sources": sources, "K": K, "T": eye.expand(1, 2, 4, 4)}
    return {**both, "source_K": K[:, None].expand(-1, 2, -1, -1)}


CALLS = ("GargLoss", "LeftRightLoss", "MonodepthLoss", "SfMLearnerLoss", "Vid2DepthLoss")


@pytest.mark.parametrize("options", [{}, {"average_reprojection": True}, {"native_scale": True}])
@pytest.mark.parametrize("name", CALLS)
def test_arguments_of_the_wrong_kind(name: str, options: dict[str, bool]) -> None:
    if options and name != "MonodepthLoss":
        options = {}
    loss, good = getattr(losses, name)(**options), given(name)
    loss(**good)
    for argument, value in good.items():
        tensors = value if isinstance(value, list) else [value]
        bads = [[one.byte() for one in tensors], [one[..., :-1, :].flatten(0, 1) for one in tensors]]
        bads = bads if isinstance(value, list) else [one[0] for one in bads]
        bads += [5, [None]] if argument == "source_K" else [None, 5, [None]]
        if argument in ("K", "source_K"):
            bads.append(torch.eye(4).expand(*value.shape[:-2], 4, 4))
        for bad in bads:
            with pytest.raises((TypeError, ValueError), match=rf"^{argument}(\[0\])?: expected .*, got "):
                loss(**good | {argument: bad})


def test_arguments_that_are_none_or_not_from_0_to_1() -> None:
    good = given("MonodepthLoss")
    for average in (False, True):
        empty = {"sources": good["sources"][:, :0], "T": good["T"][:, :0], "source_K": None}
        with pytest.raises(ValueError, match=r"^sources: expected at least 1 source"):
            losses.MonodepthLoss(average_reprojection=average)(**good | empty)
    masked = losses.MonodepthLoss(auto_mask=False, predictive_mask=True)
    for bad in (1.5, -0.5, torch.nan):
        mask = torch.full((1, 2, 16, 24), 0.5)
        mask[0, 0, 3, 4] = bad
        with pytest.raises(ValueError, match=r"^masks\[0\]: expected values from 0 to 1, got"):
            masked(**good, masks=[mask])
    for wrong in (torch.rand(1, 2, 16, 24), [None], 5):
        with pytest.raises(TypeError, match=r"^masks(\[0\])?: expected"):
            masked(**good, masks=wrong)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match=r"^explainability(\[0\])?: expected"):
            losses.SfMLearnerLoss()(**given("SfMLearnerLoss"), explainability=wrong)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"^left: expected C, H and W of at least 1"):
        losses.GargLoss()([torch.rand(1, 1, 4, 4)], torch.rand(1, 0, 4, 4), torch.rand(1, 0, 4, 4))


def test_options_of_ops_of_the_wrong_type() -> None:
    flow, image, disparity = torch.zeros(1, 2, 4, 5), torch.rand(1, 3, 4, 5), torch.rand(1, 1, 4, 5)
    camera = (torch.eye(3)[None], torch.eye(4)[None])
    for name in ("alpha", "scale", "epsilon"):
        for bad in (None, "1", torch.tensor(0.5), True):
            with pytest.raises(TypeError, match=f"^{name}: expected .*, got "):
                ops.flow_smoothness_loss(flow, **{name: bad})  # type: ignore[arg-type]
            with pytest.raises(TypeError, match=f"^{name}: expected .*, got "):
                ops.flow_photometric_loss(image, image, flow, **{name: bad})  # type: ignore[arg-type]
    for bad in (None, 1, "no"):
        with pytest.raises(TypeError, match=r"^normalize: expected True or False, got"):
            ops.edge_aware_smoothness(disparity, image, normalize=bad)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"^ssim: expected True or False, got"):
            ops.view_synthesis_loss(image, image, disparity, *camera, ssim=bad)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"^auto_mask: expected True or False, got"):
            ops.min_reprojection(image, image[:, None], disparity, camera[0], camera[1][:, None], auto_mask=bad)  # type: ignore[arg-type]
