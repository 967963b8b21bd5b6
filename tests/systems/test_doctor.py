"""Each warning of the doctor: a case that triggers it, and cases near by that do not."""

import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_run import TinyDepth, tiny_config
from torch import Tensor

from mdepth_fast.inference import load_system
from mdepth_fast.ops import inverse_warp
from mdepth_fast.systems import StepInfo, Views, load_config, system_of
from mdepth_fast.systems.doctor import Doctor
from mdepth_fast.systems.monodepth2 import Monodepth2
from mdepth_fast.training.run import train

HEIGHT, WIDTH = 64, 96


def views(sources: tuple[int | str, ...] = (-1, 1), shift: float = 0.1, K: Any = None) -> Views:
    batch, count = 3, len(sources)
    target = torch.rand(batch, 3, HEIGHT, WIDTH)
    frames = torch.rand(batch, count, 3, HEIGHT, WIDTH)
    K = torch.tensor([[80.0, 0, 47.5], [0, 80, 31.5], [0, 0, 1]]) if K is None else torch.tensor(K)
    T = torch.eye(4).repeat(batch, count, 1, 1)
    T[..., 2, 3] = shift
    K = K.expand(batch, 3, 3)
    return Views(target, frames, target, frames, K, K[:, None].expand(-1, count, 3, 3), T, [target], sources, ["a"] * 3)


def said(
    *,
    looks: int = 30,
    step: int = 50,
    seen: Callable[[int], Views] = lambda look: views(),
    disparity: Tensor | None = None,
    shift: float = 0.1,
    masked: Callable[[int], float] = lambda look: 0.3,
    **changes: Any,
) -> list[str]:
    """The warnings of a run of looks."""
    doctor = Doctor(tiny_config(**changes))
    disparity = torch.rand(3, 1, HEIGHT, WIDTH) if disparity is None else disparity
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for look in range(looks):
            given = seen(look)
            T = torch.eye(4).repeat(3, len(given.offsets), 1, 1)
            T[..., 0, 3] = shift
            outputs = SimpleNamespace(disparities=[disparity], transforms=T)
            doctor.look(look * step, given, outputs, {"auto_masked": torch.tensor(masked(look))})
    return [str(warning.message) for warning in caught]


def test_a_healthy_run_says_nothing() -> None:
    assert said() == []
    assert said(seen=lambda look: views(("stereo",), 0.5), masked=lambda look: 0.0) == []  # stereo masks little
    assert said(seen=lambda look: views((-1, 1, "stereo"), 0.5)) == []
    assert said(looks=1, shift=1e-9, masked=lambda look: 1.0) == []  # the first look of an untrained network


def test_a_flat_disparity() -> None:
    flat = torch.full((3, 1, HEIGHT, WIDTH), 0.2)
    (message,) = said(disparity=flat)  # once
    assert message.startswith("the disparity is flat at step 50 (spread ")
    assert said(disparity=flat, looks=1) == []  # before the first step
    assert said(disparity=flat + 1e-3 * torch.rand_like(flat)) == []


def test_auto_masking_of_nearly_everything_or_nothing() -> None:
    (message,) = said(masked=lambda look: 0.97)
    assert message.startswith("auto-masking removes 97.0% of the pixels: the camera hardly moves")
    assert said(masked=lambda look: 0.97 if look % 5 else 0.8) == []  # a traffic light now and then
    (message,) = said(masked=lambda look: 0.001)
    assert message.startswith("auto-masking removes 0.1% of the pixels, where some are expected")
    assert said(masked=lambda look: 0.001, looks=9) == []
    assert said(masked=lambda look: 0.0, loss__auto_mask=False) == []


@pytest.mark.parametrize("name", ["stereo", "known"])
def test_known_poses_in_another_unit(name: str) -> None:
    """Metres, with a depth range of 0.5 to 20 m; a step of 10 cm."""
    assert said(seen=lambda look: views((name, -1), 0.1)) == []
    (message,) = said(seen=lambda look: views((name, -1), 100.0), looks=1)
    assert "move the camera by 100 (median)" in message and "Are the poses in millimetres? Poses and depth" in message
    (message,) = said(seen=lambda look: views((name,), 1e-4))
    assert "Are the poses in kilometres, or does the camera stand still?" in message
    assert said(seen=lambda look: views((name,), 1e-4 if look % 5 else 0.1)) == []
    # The same poses fit a depth range in their own unit.
    assert said(seen=lambda look: views((name,), 100.0), model__min_depth=500.0, model__max_depth=2e4) == []


def test_predicted_motion_out_of_proportion() -> None:
    for shift in (50.0, 1e-7):
        (message,) = said(shift=shift)
        assert message.startswith(f"the predicted motion is {shift:.3g} (median)")
        assert said(shift=shift, looks=9) == []
        assert said(shift=shift, seen=lambda look: views(("stereo",))) == []  # none is predicted
    assert said(shift=1e-3) == []


@pytest.mark.parametrize(
    ("K", "reason"),
    [
        ([[0.58, 0, 0.5], [0, 1.92, 0.5], [0, 0, 1.0]], "look like fractions of the image"),
        ([[160.0, 0, 95.5], [0, 160, 63.5], [0, 0, 1]], "the principal point is far from the centre"),
        ([[600.0, 0, 47.5], [0, 600, 31.5], [0, 0, 1]], "the focal length is 6.25 widths"),
        ([[20.0, 0, 47.5], [0, 20, 31.5], [0, 0, 1]], "the focal length is 0.21 widths"),
        ([[80.0, 0, 47.5], [0, 800, 31.5], [0, 0, 1]], "15.00 times as wide as high"),
    ],
)
def test_implausible_intrinsics(K: Any, reason: str) -> None:
    (message,) = said(seen=lambda look: views(K=K))
    assert reason in message and "at the network's size 64x96" in message


def test_intrinsics_of_stretched_frames_are_plausible() -> None:
    """1242x375 and 375x1242 squeezed into 96x64."""
    assert said(seen=lambda look: views(K=[[55.7, 0, 47.5], [0, 123.0, 31.5], [0, 0, 1]])) == []
    assert said(seen=lambda look: views(K=[[96.0, 0, 40.0], [0, 60.0, 25.0], [0, 0, 1]])) == []


def test_it_looks_only_where_a_step_may() -> None:
    system = Monodepth2(tiny_config(), TinyDepth(), None, ("stereo",))
    looked: list[int] = []
    system.doctor = SimpleNamespace(look=lambda step, *rest: looked.append(step))  # type: ignore[assignment]
    batch = torch.utils.data.default_collate([Monodepth2.training_data(tiny_config(data__sources=["stereo"]))[0]])
    for step, look in enumerate((True, False, True)):
        system.step(batch, StepInfo(step, torch.Generator(), look))
    assert looked == [0, 2]


def indoor(real_data: Path, *overrides: str) -> Any:
    folder = real_data / "indoor_rgbd"
    words = [f"--data.root={folder / 'images'}", f"--data.intrinsics={folder / 'K.txt'}", "--data.workers=0"]
    words += ["--data.height=64", "--data.width=96", "--model.name=tiny_depth", "--protocol=nyu"]
    words += ["--trainer.accelerator=cpu", "--trainer.devices=1", "--augment.flip=0.5"]
    return load_config("folder", [*words, *overrides])


def test_training_with_known_poses(real_data: Path, tmp_path: Path) -> None:
    """Real frames: no pose network, no warning, depth in the unit of the poses, and true depth explains the sources."""
    folder = real_data / "indoor_rgbd"
    given = [f"--data.poses={folder / 'poses.txt'}", "--data.sources=[-3,3]", "--data.batch_size=3"]
    given += ["--model.min_depth=0.5", "--model.max_depth=10", "--trainer.max_epochs=1", f"--output={tmp_path}"]
    config = indoor(real_data, f"--data.depth={folder / 'depth'}", "--trainer.log_every_n_steps=1", *given)
    lines: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", module=r"lightning.*")
        result = train(config, say=lines.append)
    assert lines[0].startswith("training tiny_depth in mode M on 6 samples of folder at 64x96, sources ['known',")
    assert result is not None and result.after != result.before
    system = load_system(tmp_path / "folder" / "001")
    assert system.pose_net is None and system.sources == ("known", "known") and system.depth_net.unit == "m"

    # What the objective sees: warping by true depth and these poses lowers the difference, by another unit it does not.
    sample = Monodepth2.training_data(config)[0]
    millimetres = torch.from_numpy(np.array(Image.open(folder / "depth" / "00006.png")).astype(np.float32))
    depth = F.interpolate(millimetres[None, None] / 1000, (64, 96), mode="nearest")
    target, K = sample["target"][None].double(), sample["K"][None].double()
    for source, T in zip(sample["sources"][:, None].double(), sample["T"][:, None].double()):
        differences = []
        for factor in (1.0, 0.0, 10.0):
            motion = T.clone()
            motion[:, :3, 3] *= factor
            warped, valid = inverse_warp(source, depth.double(), K, motion if factor else torch.eye(4).double()[None])
            seen = (valid & (depth > 0)).expand_as(target)
            differences.append(float((warped - target).abs()[seen].mean()))
        assert differences[0] < 0.8 * min(differences[1:]), differences


def test_poses_in_millimetres_are_reported_before_training(real_data: Path, tmp_path: Path) -> None:
    poses = np.loadtxt(real_data / "indoor_rgbd" / "poses.txt").reshape(-1, 4, 4)
    poses[:, :3, 3] *= 1000
    np.savetxt(tmp_path / "millimetres.txt", poses.reshape(-1, 16))
    config = indoor(real_data, f"--data.poses={tmp_path / 'millimetres.txt'}")
    kind = system_of(config)
    dataset = kind.training_data(config)
    system = kind.create(config, dataset)
    batch = torch.utils.data.default_collate([dataset[0], dataset[1]])
    with pytest.warns(UserWarning, match="Are the poses in millimetres"):
        system.step(batch, StepInfo(0, torch.Generator(), look=True))


def test_poses_belong_to_folders(real_data: Path) -> None:
    config = load_config("synthetic", ["--data.poses=poses.txt"])
    with pytest.raises(ValueError, match=r"data\.poses: expected null for the synthetic data"):
        system_of(config).training_data(config)
