"""Monodepth (2017) and Garg et al. (2016): recipes, metric depth from the baseline, steps on real pairs."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import Untouched
from torch.utils.data import default_collate

from mdepth_fast.data import MotorcycleStereo, SyntheticScenes
from mdepth_fast.inference import evaluate, load_system, load_trained
from mdepth_fast.systems import StepInfo, Views, get_system, list_presets, load_config, preset_notes
from mdepth_fast.training.run import train

PRESETS = [*list_presets("left_right"), *list_presets("garg")]
RUN = ["--data.workers=0", "--trainer.accelerator=cpu", "--trainer.devices=1", "--model.base=4"]


def test_presets() -> None:
    data = ("kitti", "motorcycle", "synthetic")
    assert [f"{system}_{name}" for system in ("left_right", "garg") for name in data] == PRESETS
    for name in PRESETS:
        config = load_config(name)
        assert config.run == name and name.startswith(config.system)
        assert "--data.root" in " ".join(preset_notes(name)) or not name.endswith("kitti")


def test_the_published_recipe() -> None:
    config = load_config("left_right_kitti")
    assert (config.data.height, config.data.width, config.data.batch_size) == (256, 512, 8)
    assert (config.model.name, config.model.base, config.model.max_disparity) == ("monodepth_vgg", None, 0.3)
    assert (config.loss.ssim_weight, config.loss.smoothness, config.loss.consistency) == (0.85, 0.1, 1.0)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.gamma) == ("adam", 1e-4, 0.5)
    epochs = config.trainer.max_epochs
    assert epochs == 50 and optimizer.milestones == [3 * epochs // 5, 4 * epochs // 5]
    augment = config.augment
    assert (augment.flip, augment.jitter) == (0.5, 0.5)
    assert (augment.gamma, augment.brightness, augment.color) == ((0.8, 1.2), (0.5, 2.0), (0.8, 1.2))
    assert load_config("garg_kitti").loss.smoothness == 0.01


def test_there_are_no_poses_to_set() -> None:
    with pytest.raises(ValueError, match=r"pose\.name"):
        load_config("left_right_kitti", ["--pose.name=posecnn"])


def build(preset: str, dataset: Any, *words: str) -> Any:
    config = load_config(preset, [*RUN, *words])
    return get_system(config.system).create(config, dataset)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_camera_is_that_of_the_data(side: str) -> None:
    """The true disparity of the embedded pair, as a share of the width, becomes the true depth."""
    from skimage.data import stereo_motorcycle

    system = build("left_right_motorcycle", MotorcycleStereo(250, 384, sides=(side,)))
    net = system.depth_net
    assert (net.unit, net.baseline) == ("m", pytest.approx(0.193001))
    assert (net.focal, net.offset) == (pytest.approx(994.978 / 741), pytest.approx(31.086 / 741, rel=1e-4))
    disparity = torch.from_numpy(stereo_motorcycle()[2])[None, None] / 741
    truth = MotorcycleStereo(250, 384, evaluation=True)[0]["depth"]
    known = truth > 0
    torch.testing.assert_close(system.to_depth(disparity)[0][known], truth[known], rtol=1e-4, atol=0)


@pytest.mark.parametrize("preset", PRESETS[1::3])
def test_a_step_does_not_depend_on_which_image_is_the_target(preset: str) -> None:
    sides = [MotorcycleStereo(128, 256, sides=(side,)) for side in ("left", "right")]
    system = build(preset, sides[0]).train()
    losses = []
    for dataset in sides:
        info = StepInfo(0, torch.Generator().manual_seed(0), True)
        losses.append(system.step(default_collate([dataset[0]]), info))
    assert losses[0] == losses[1] and losses[0]["loss"] > 0


def test_each_sample_brings_its_focal_length() -> None:
    scenes = SyntheticScenes(2, 128, 128, sources=(), evaluation=True)
    system = build("left_right_synthetic", SyntheticScenes(1, 128, 128, sources=("stereo",)))
    evaluator = system.evaluator("synthetic")
    seen = []
    evaluator.update = lambda prediction, *rest, **options: seen.append(prediction)  # type: ignore[method-assign]
    longer = [{**scenes[0], "K": scenes[0]["K"] * torch.tensor([1.25, 1, 1])[:, None]}]
    for samples in ([scenes[0]], longer):
        evaluate(system.net.eval(), samples, evaluator)
    torch.testing.assert_close(seen[1], 1.25 * seen[0])


def test_what_is_not_a_pair_is_refused() -> None:
    scenes = SyntheticScenes(1, 64, 128, sources=(-1, "stereo"))
    with pytest.raises(ValueError, match=r"data\.sources: expected \[stereo\], as left_right .* \[-1, 'stereo'\]"):
        build("left_right_synthetic", scenes)

    class Tilted(SyntheticScenes):
        def __getitem__(self, index: int) -> Any:
            sample = super().__getitem__(index)
            sample["T"][0, 1, 3] = 0.1
            return sample

    with pytest.raises(ValueError, match="T: expected a shift along x between the cameras of a rectified pair"):
        build("garg_synthetic", Tilted(1, 128, 128, sources=("stereo",)))

    with pytest.raises(ValueError, match=r"data\.width: expected a multiple of 128 for monodepth_vgg, got 288"):
        build("left_right_motorcycle", MotorcycleStereo(256, 288), "--data.width=288")
    with pytest.raises(ValueError, match=r"model\.name: expected monodepth_vgg or the like: .*Monodepth2"):
        build("left_right_motorcycle", MotorcycleStereo(128, 128), "--model.name=monodepth2_resnet18")


def test_the_mask_shows_where_both_disparities_agree() -> None:
    system = build("left_right_motorcycle", MotorcycleStereo(128, 256))
    sample = MotorcycleStereo(128, 256, evaluation=True)[0]
    views = Views.of_batch(system.eval().augment(default_collate([sample])), ("stereo",))
    outputs = system.outputs(views)
    share = 10 / 256
    same = [torch.full_like(one, share) for one in outputs.disparities]
    (mask,) = system.objective.masks(views, outputs._replace(disparities=same)).values()
    assert mask.shape == (1, 128, 256)
    assert mask[..., 10:].all() and not mask[..., :10].any()  # what the right camera does not see
    for one in same:
        one[:, 1] += 2 / 256
    (mask,) = system.objective.masks(views, outputs._replace(disparities=same)).values()
    assert not mask.any()


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.endswith("kitti")])
def test_a_few_steps_on_real_pairs(preset: str, real_data: Path, tmp_path: Path) -> None:
    """All pairs of a KITTI drive, with a narrow network, the preset's augmentation, loss and protocol."""
    split = tmp_path / "val.txt"
    split.write_text("2011_09_26/2011_09_26_drive_0052_sync 0 l\n")
    words = [*RUN, f"--data.root={real_data / 'kitti_raw'}", f"--data.val_split={split}", "--data.batch_size=2"]
    words += ["--data.height=128", "--data.width=256", "--trainer.max_steps=2", f"--output={tmp_path}"]
    untouched = Untouched()
    result = train(load_config(preset, words), callbacks=[untouched])
    assert result is not None and untouched.steps == 2
    assert result.after is not None and result.after["images"] == 1 and math.isfinite(result.after["abs_rel"])
    trained = load_trained(result.folder)
    net = trained.net
    assert net.unit == "m" and net.input_size == (128, 256) and result.panel.is_file()
    # 0.54 m, 721.5 px of 1242.
    assert (net.baseline, net.focal) == (pytest.approx(0.533, abs=1e-3), pytest.approx(721.5377 / 1242, rel=1e-4))
    assert net.predict(torch.rand(3, 100, 300)).depth.shape == (1, 1, 100, 300)
    system = load_system(result.folder)
    assert system.name == trained.config.system and system.extra_state()["camera"]["focal"] == net.focal
    weights = net.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in system.net.state_dict().items())
