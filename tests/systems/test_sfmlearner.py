"""SfMLearner and vid2depth through the ordinary commands, on real and synthetic frames; SfMLearner's parts."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_sequences import SMALL, kitti
from torch.utils.data import default_collate

from mdepth_fast.cli import main
from mdepth_fast.data import SyntheticScenes
from mdepth_fast.geometry import pose_matrix_from_vector
from mdepth_fast.inference import load_trained
from mdepth_fast.models import create_model, list_models
from mdepth_fast.systems import StepInfo, Views, get_system, list_presets, load_config, preset_notes
from mdepth_fast.training.run import train

SYSTEMS = ("sfmlearner", "vid2depth")


def small(preset: str, *words: str) -> Any:
    return load_config(preset, [*SMALL, *words])


def create(preset: str, *words: str, length: int = 2) -> Any:
    config = small(preset, "--data.name=synthetic", f"--data.length={length}", *words)
    system = get_system(config.system)
    return system.create(config, system.training_data(config))


@pytest.mark.parametrize("name", SYSTEMS)
def test_presets_hold_the_published_recipe(name: str) -> None:
    assert list_presets(name) == [f"{name}_kitti", f"{name}_synthetic"]
    config = load_config(f"{name}_kitti")
    notes = " ".join(preset_notes(f"{name}_kitti"))
    assert "--data.root" in notes and "--data.split" in notes
    optimizer, data = config.optimizer, config.data
    assert (optimizer.name, optimizer.lr, optimizer.schedule, optimizer.weight_decay) == ("adam", 2e-4, "constant", 0)
    assert (data.height, data.width, data.batch_size, data.sources) == (128, 416, 4, [-1, 1])
    assert config.trainer.max_steps == 200_000 and config.trainer.max_epochs == -1
    assert {config.model.name, config.pose.name} <= {*list_models()}
    assert 1 / config.model.min_depth == pytest.approx(10.01) and config.model.max_depth == 100
    augment = config.augment
    assert (augment.flip, tuple(augment.scale)) == (0, (1.0, 1.15))
    if name == "sfmlearner":
        assert augment.jitter == 0 and (config.loss.smoothness, config.loss.explainability) == (0.5, 0)
    else:
        assert augment.jitter == 1 and augment.colors_in_loss
        ranges = (augment.gamma, augment.brightness, augment.color)
        assert [tuple(one) for one in ranges] == [(0.8, 1.2), (0.5, 2.0), (0.8, 1.2)]
        assert vars(config.loss) == {
            "reconstruction": 0.85,
            "ssim": 0.15,
            "smoothness": 0.05,
            "icp": 0.1,
            "icp_iterations": 10,
        }


@pytest.mark.parametrize("name", SYSTEMS)
def test_real_frames_train_evaluate_predict_and_resume(
    name: str, real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, *kitti(real_data, tmp_path), f"--output={tmp_path}"]
    if name == "sfmlearner":
        words.append("--loss.explainability=0.2")
    preset = f"{name}_kitti"
    assert main(["train", preset, *words, "--trainer.max_steps=3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"training {name} in mode M on 5 samples of kitti at 64x96, sources [-1, 1]")
    folder = tmp_path / preset / "001"
    assert (folder / "panel.png").is_file()
    after = re.search(r"^after +(.*)", out, re.MULTILINE)
    assert main(["eval", str(folder)]) == 0
    assert after and capsys.readouterr().out.splitlines()[2].split()[:6] == after[1].split()[:6]
    image = real_data / "kitti_raw" / "2011_09_26/2011_09_26_drive_0052_sync/image_02/data/0000000001.png"
    assert main(["predict", str(folder), str(image), "--output", str(tmp_path / "out")]) == 0
    assert any((tmp_path / "out").iterdir())
    capsys.readouterr()
    assert main(["train", preset, *words, "--trainer.max_steps=4", "--resume=auto"]) == 0
    assert "last.ckpt (the last, step 4)" in capsys.readouterr().out
    trained = load_trained(folder)
    assert trained.net.input_size == (64, 96) and trained.net.unit is None


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_same_scenes_are_learned(name: str) -> None:
    """Two scenes again and again: the loss falls."""
    system = create(f"{name}_synthetic", "--augment.scale=[1,1]", *(["--loss.icp=0"] if name == "vid2depth" else []))
    batch = default_collate([system.training_data(system.config)[n] for n in range(2)])
    optimizer = torch.optim.Adam(system.parameters(), 5e-3)
    losses = []
    for step in range(25):
        loss = system.train().step(batch, StepInfo(step, torch.Generator(), False))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])


def test_triplets_train(tmp_path: Path) -> None:
    """What the programs of both papers have prepared."""
    (tmp_path / "drive").mkdir()
    scenes = SyntheticScenes(2, 64, 96)
    for n in range(2):
        sample = scenes[n]
        frames = [sample["sources"][0], sample["target"], sample["sources"][1]]
        Image.fromarray(torch.cat(frames, 2).permute(1, 2, 0).numpy()).save(tmp_path / "drive" / f"{n}.jpg")
        (tmp_path / "drive" / f"{n}_cam.txt").write_text(",".join(str(v) for v in sample["K"].flatten().tolist()))
    (tmp_path / "train.txt").write_text("drive 0\ndrive 1\n")
    words = ["--data.name=triplets", f"--data.root={tmp_path}", f"--output={tmp_path}", "--trainer.max_steps=2"]
    result = train(small("vid2depth_kitti", *words, "--loss.icp=0"))
    assert result is not None and result.panel.is_file() and result.after is None


def test_motion_and_masks_of_a_batch() -> None:
    system = create("sfmlearner_synthetic", "--loss.explainability=0.2")
    samples = [system.training_data(system.config)[n] for n in range(2)]
    views = Views.of_batch(system.eval().augment(default_collate(samples)), system.sources)
    outputs = system.outputs(views)
    frames = torch.cat([views.target_aug[:, None], views.sources_aug], 1)
    vectors, logits = system.pose_net(frames)
    torch.testing.assert_close(outputs.transforms, pose_matrix_from_vector(vectors))
    assert [one.shape for one in logits] == [(2, 2, 64 >> s, 96 >> s) for s in range(4)]
    masks = system.objective.masks(views, outputs)
    assert list(masks) == ["explained by frame -1", "explained by frame +1"]
    assert torch.equal(masks["explained by frame +1"], outputs.extras["explainability"][0][:, 1] > 0)
    terms = system.step(default_collate(samples), StepInfo(0, torch.Generator(), False))
    assert set(terms) == {"loss", "photometric", "smoothness", "explainability"}
    with torch.inference_mode():
        titles = [cell.title for cell in system.panel(samples[0])]
    assert titles[0] == "image" and sum("explained by" in title for title in titles) == 2


def test_every_parameter_learns() -> None:
    for name in SYSTEMS:
        system = create(f"{name}_synthetic", *(["--loss.explainability=0.2"] if name == "sfmlearner" else []))
        batch = default_collate([system.training_data(system.config)[n] for n in range(2)])
        system.train().step(batch, StepInfo(0, torch.Generator(), False))["loss"].backward()
        assert all(parameter.grad is not None for parameter in system.parameters())


def test_any_disparity_network_will_do() -> None:
    system = create("sfmlearner_synthetic", "--model.name=monodepth2_resnet18", "--model.options={scales: [0, 1]}")
    assert system.depth_net.scales == (0, 1)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.sources=[-1,stereo]"], r"data.sources: expected frame offsets such as \[-1, 1\]"),
        (["--pose.name=posenet_resnet18", "--pose.options={}"], "pose.name: expected a network that sees all frames"),
        (["--model.options={min_depth: 1}"], "model.options: min_depth is set by the configuration"),
        (["--model.options={layers: 1}"], "model.options: .*layers"),
        (["--pose.options={sources: 4}"], "pose.options: sources is set by the configuration"),
    ],
)
def test_settings_that_cannot_be(name: str, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(f"{name}_synthetic", *words)


def test_published_weights_to_start_from(tmp_path: Path) -> None:
    net: Any = create_model("sfmlearner", width_multiplier=0.0625)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    words = (f"--model.weights={tmp_path / 'net.pth'}", "--model.options.batch_norm=false")
    system = create("sfmlearner_synthetic", *words)
    assert torch.equal(system.depth_net.cnv1.conv.weight, net.cnv1.conv.weight)
