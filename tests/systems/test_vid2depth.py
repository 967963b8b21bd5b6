"""What vid2depth's motion, objective and networks do with a sequence; its runs are in test_sfmlearner.py."""

from typing import Any

import pytest
import torch
from small_sequences import SMALL
from torch import Tensor
from torch.utils.data import default_collate

from mdepth_fast.data import SyntheticScenes
from mdepth_fast.geometry import invert_pose, pose_matrix_from_vector
from mdepth_fast.losses import Vid2DepthLoss
from mdepth_fast.systems import StepInfo, Views, load_config
from mdepth_fast.systems.vid2depth import Vid2Depth, Vid2DepthMotion, in_order


def system_and_batch(sources: str = "[-1,1]", *words: str) -> tuple[Any, Any]:
    config = load_config("vid2depth_synthetic", [*SMALL, "--data.length=2", f"--data.sources={sources}", *words])
    data = Vid2Depth.training_data(config)
    return Vid2Depth.create(config, data), default_collate([data[n] for n in range(2)])


def test_frames_are_put_in_order() -> None:
    assert in_order((-1, 1)) == ([1, 0, 2], 1)
    assert in_order((1, -1)) == ([2, 0, 1], 1)
    assert in_order((1,)) == ([0, 1], 0)
    assert in_order((-2, -1)) == ([1, 2, 0], 2)
    assert in_order((3, -3)) == ([2, 0, 1], 1)  # every third frame of a video
    with pytest.raises(ValueError, match=r"data\.sources: expected frame offsets"):
        in_order((-1, "stereo"))


@pytest.mark.parametrize("offsets", [(-1, 1), (1, -1), (1,), (-1, 1, 2), (-2, -1), (-2, 2)])
def test_transforms_to_all_sources_are_products_of_neighbours(offsets: tuple[int, ...]) -> None:
    order, target = in_order(offsets)
    steps = len(offsets)
    vectors = (0.1 * torch.randn(2, steps, 6)).double()  # motions are float32 under any precision

    def net(frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        assert (frames.mean((2, 3, 4)).diff(dim=1) > 0).all(), "frames are in temporal order"
        return vectors, []

    times = torch.tensor([0, *offsets], dtype=torch.float64).view(1, -1, 1, 1, 1).expand(2, -1, 3, 4, 4)
    eye = torch.eye(4).expand(2, steps, 4, 4)
    K = torch.eye(3).expand(2, 3, 3)
    views = Views(times[:, 0], times[:, 1:], times[:, 0], times[:, 1:], K, K[:, None], eye, [], offsets, ["a", "b"])
    T, extras = Vid2DepthMotion(net)(views, [])
    forward, back = pose_matrix_from_vector(vectors), pose_matrix_from_vector(-vectors)
    torch.testing.assert_close(extras["pairs"].double(), torch.stack([forward, back], 2).flatten(1, 2))
    in_time = sorted([0, *offsets])
    for index, offset in enumerate(offsets):
        expected = torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
        for k in range(target, in_time.index(offset)):  # from frame k to k + 1
            expected = back[:, k] @ expected
        for k in range(target, in_time.index(offset), -1):  # from frame k to k - 1
            expected = forward[:, k - 1] @ expected
        torch.testing.assert_close(T[:, index].double(), expected)  # type: ignore[call-overload]
    assert len(order) == steps + 1


def test_the_objective_sees_every_frame_with_its_own_depth_and_camera() -> None:
    system, batch = system_and_batch("[1,-1]")
    views = Views.of_batch(system.eval().augment(batch), system.sources)
    outputs = system.outputs(views)
    frames = torch.stack([views.sources[:, 1], views.target, views.sources[:, 0]], 1)
    for s, one in enumerate(outputs.extras["sequence"]):
        assert one.shape == (2, 3, 1, 64 >> s, 96 >> s)
        torch.testing.assert_close(one[:, 1], outputs.disparities[s])
        torch.testing.assert_close(one[:, 0], system.depth_net(frames[:, 0])[s])
    limits = system.config.model
    loss = Vid2DepthLoss(limits.min_depth, limits.max_depth, smoothness=system.config.loss.smoothness)
    K = torch.stack([views.source_K[:, 1], views.K, views.source_K[:, 0]], 1)
    expected = loss(outputs.extras["sequence"], frames, K, outputs.extras["pairs"])
    terms = system.objective(views, outputs)
    torch.testing.assert_close(terms["loss"], expected)
    assert set(terms) == {"loss", "reconstruction", "ssim", "smoothness", "icp"}
    masks = system.objective.masks(views, outputs)
    assert list(masks) == ["inside frame +1", "inside frame -1"] and masks["inside frame -1"].shape == (2, 64, 96)


def test_the_true_motion_costs_less_than_none() -> None:
    """The directions of the transforms, on scenes whose depth and poses are known."""
    scene = SyntheticScenes(1, 64, 96, sources=(-1, 1), evaluation=True)[0]
    images = torch.stack([scene["sources"][0], scene["target"], scene["sources"][1]])[None] / 255
    # Good enough for the neighbours, too: they are 0.3 m away at most.
    maps = [((1 / scene["depth"] - 0.05) / (2 - 0.05)).expand(1, 3, 1, 64, 96)]
    to_past, to_future = scene["T"]
    pairs = torch.stack([to_past, invert_pose(to_past), invert_pose(to_future), to_future])[None]
    loss = Vid2DepthLoss(0.5, 20.0, icp=0.0)
    costs = [
        loss(maps, images, scene["K"][None], T, return_parts=True)[1].reconstruction
        for T in (pairs, torch.eye(4).expand_as(pairs), invert_pose(pairs))
    ]
    assert costs[0] < 0.6 * costs[1] < costs[2]


def test_terms_that_are_off_are_neither_computed_nor_logged() -> None:
    system, batch = system_and_batch("[-1,1]", "--loss.icp=0", "--loss.ssim=0")
    terms = system.step(batch, StepInfo(0, torch.Generator(), False))
    assert set(terms) == {"loss", "reconstruction", "smoothness"}


def test_sequences_of_two_and_of_every_second_frame() -> None:
    for sources in ("[1]", "[-2,2]"):
        system, batch = system_and_batch(sources)
        assert system.step(batch, StepInfo(0, torch.Generator(), False))["loss"].isfinite()
