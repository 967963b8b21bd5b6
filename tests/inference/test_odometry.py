"""A trajectory from frames, with networks that know the true motion: what is chained, and in which direction."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation
from tiny_run import TinyDepth, tiny_config
from torch import Tensor, nn

from mdepth_fast.geometry import pose_matrix
from mdepth_fast.inference import load_system, predict_trajectory
from mdepth_fast.systems import PairPoses, StackedPoses
from mdepth_fast.systems.monodepth2 import Monodepth2
from mdepth_fast.training.module import TrainingModule

TURN, STEP = torch.tensor([0.02, -0.05, 0.01]), torch.tensor([0.1, -0.05, 0.8])


def truth(count: int, stride: int = 1) -> np.ndarray:
    """Camera-to-world poses of every `stride`-th frame of a camera with a constant motion."""
    motion = pose_matrix(TURN.double(), STEP.double()).numpy()
    return np.array([np.linalg.matrix_power(np.linalg.inv(motion), stride * i) for i in range(count)])


class Pairs(nn.Module):
    """The motion between frames whose brightness is their number."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.calls = 0

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += len(first)
        numbers = ((images.mean((1, 2, 3)) * 255).round().int().tolist() for images in (first, second))
        poses = truth(20)
        T = torch.tensor(np.array([np.linalg.inv(poses[j]) @ poses[i] for i, j in zip(*numbers)]))
        return torch.from_numpy(Rotation.from_matrix(T[:, :3, :3].numpy()).as_rotvec()), T[:, :3, 3]


class Stack(Pairs):
    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        moved = [super(Stack, self).forward(frames[:, 0], frames[:, s]) for s in range(1, frames.shape[1])]
        return torch.stack([turn for turn, _ in moved], 1), torch.stack([step for _, step in moved], 1)


class Stacked(Monodepth2):
    """Any system whose motion model needs all its sources at once."""

    def build_motion(self) -> Any:
        return StackedPoses(self.pose_net)


def write_numbered(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.fromarray(np.full((64, 96, 3), number, np.uint8)).save(folder / f"{number}.png")
    return folder


def test_pairs_are_chained_over_every_frame(tmp_path: Path) -> None:
    frames = write_numbered(tmp_path / "frames", 9)
    for sources in ((-1, 1), (1,), (-1,), (-1, 1, "stereo")):
        pose = Pairs()
        system = Monodepth2(tiny_config(), TinyDepth(), pose, sources).eval()
        assert isinstance(system.motion, PairPoses)
        found = predict_trajectory(system, frames)
        assert pose.calls == 8  # each pair once
        np.testing.assert_allclose(found.poses, truth(9), atol=1e-5)
        assert found.timestamps.tolist() == list(range(9)) and not found.timed


def test_a_network_for_distant_frames_gives_every_kth(tmp_path: Path) -> None:
    system = Monodepth2(tiny_config(), TinyDepth(), Pairs(), (-2, 2)).eval()
    found = predict_trajectory(system, write_numbered(tmp_path / "frames", 8))
    assert found.timestamps.tolist() == [0, 2, 4, 6]
    np.testing.assert_allclose(found.poses, truth(4, 2), atol=1e-5)


@pytest.mark.parametrize("sources", [(-1, 1), (1, 2), (-2, -1), (1, -1)])
def test_stacked_networks_get_all_their_sources(tmp_path: Path, sources: tuple[int, ...]) -> None:
    """The frames at either end, which have not all their neighbours, are reached from the other side."""
    frames = write_numbered(tmp_path / "frames", 9)
    system = Stacked(tiny_config(), TinyDepth(), Stack(), sources).eval()
    found = predict_trajectory(system, frames, batch_size=3)
    assert found.timestamps.tolist() == list(range(9))
    np.testing.assert_allclose(found.poses, truth(9), atol=1e-5)
    mixed = Stacked(tiny_config(), TinyDepth(), Stack(), (-1, 1, "stereo"))
    with pytest.raises(ValueError, match="expected one that needs video alone"):
        predict_trajectory(mixed, frames)


def test_refused(tmp_path: Path) -> None:
    frames = write_numbered(tmp_path / "frames", 3)
    with pytest.raises(ValueError, match="expected one that predicts poses, got monodepth2 with sources"):
        predict_trajectory(Monodepth2(tiny_config(), TinyDepth(), None, ("stereo",)), frames)
    system = Monodepth2(tiny_config(), TinyDepth(), Pairs(), (-3, 3))
    with pytest.raises(ValueError, match=r"no frame of .* has all of"):
        predict_trajectory(system, frames)

    class Broken(Pairs):
        def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
            turn, step = super().forward(first, second)
            return turn, torch.where((first.mean((1, 2, 3)) * 255 > 0.5)[:, None], torch.nan, step)

    with pytest.raises(ValueError, match=r"the pose of frames/1\.png is not finite; the intrinsics are not known"):
        predict_trajectory(Monodepth2(tiny_config(), TinyDepth(), Broken(), (1,)), frames)


def test_a_saved_system_comes_back_whole(tmp_path: Path) -> None:
    config = tiny_config(data__sources=[-1, 1])
    system = Monodepth2.create(config, Monodepth2.training_data(config))
    checkpoint: dict[str, Any] = {"state_dict": system.state_dict()}
    TrainingModule(system).on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "last.ckpt")
    frames = write_numbered(tmp_path / "frames", 4)
    found = load_system(tmp_path)
    assert not found.training and found.sources == (-1, 1)
    expected = predict_trajectory(system.eval(), frames)
    assert np.array_equal(predict_trajectory(found, frames).poses, expected.poses)
    assert expected.length > 0
