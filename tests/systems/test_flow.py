"""Optical flow: its presets, a few steps of each, that it learns without ground truth, and its commands."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mdepth_fast.cli import main
from mdepth_fast.data import SyntheticFlow, collate_flow, read_flow, write_flo, write_flow_png
from mdepth_fast.evaluation import FLOW_PROTOCOLS
from mdepth_fast.inference import load_trained
from mdepth_fast.models import FlowModel, create_model, register_model
from mdepth_fast.systems import StepInfo, list_presets, load_config, preset_notes, system_for, system_of
from mdepth_fast.systems.depth import DepthSystem
from mdepth_fast.systems.flow import Flow
from mdepth_fast.training.module import TrainingModule
from mdepth_fast.training.run import train

PRESETS = list_presets("flow")
CPU = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--data.workers=0"]


class TinyFlowNet(FlowModel):
    """Flow at an eighth of the size of the images."""

    multiple = 8

    def __init__(self) -> None:
        super().__init__()
        sizes = ((6, 16, 7, 2), (16, 32, 5, 2), (32, 32, 3, 2), (32, 32, 3, 1))
        layers = [nn.Sequential(nn.Conv2d(i, o, k, s, k // 2), nn.LeakyReLU(0.1)) for i, o, k, s in sizes]
        self.net = nn.Sequential(*layers, nn.Conv2d(32, 2, 3, 1, 1))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        flow: Tensor = self.net(torch.cat([first, second], 1) - 0.5)
        return flow


register_model("tiny_flow_net", TinyFlowNet)
PLAIN = ["--augment.flip=0", "--augment.flip_vertical=0", "--augment.swap=0"]
PLAIN += ["--augment.color=[1,1]", "--augment.contrast=[1,1]"]
TINY = [*CPU, "--model.name=tiny_flow_net", "--model.options={}", "--data.height=32", "--data.width=32"]


def test_presets() -> None:
    assert PRESETS == ["flow_chairs", "flow_kitti", "flow_synthetic"]
    for preset in PRESETS:
        config = load_config(preset)
        assert config.run == preset and config.protocol in FLOW_PROTOCOLS
        assert config.trainer.monitor == "val/epe" and preset_notes(preset)
        assert ("--data.root" in " ".join(preset_notes(preset))) == (config.data.name != "synthetic")


def test_the_published_recipes() -> None:
    """Rate, batch, when the rate is halved, how long; the exponents of the paper and of the released code."""
    recipes: dict[str, tuple[Any, ...]] = {
        "flow_chairs": (1.6e-5, 4, [300000, 400000, 500000], 600000, 0.25, 1.0, 0.37, 1.0, 1.0, 0.0, 384, 512),
        "flow_kitti": (1e-5, 2, [300000, 400000], 500000, 0.53, 360.0, 0.28, 3.5, 0.64, 0.1, 320, 1152),
    }
    for preset, expected in recipes.items():
        config: Any = load_config(preset)
        optimizer, data, loss = config.optimizer, config.data, config.loss
        assert (optimizer.name, optimizer.schedule, optimizer.gamma) == ("adam", "step_milestones", 0.5)
        found = (optimizer.lr, data.batch_size, optimizer.milestones, config.trainer.max_steps, loss.alpha, loss.scale)
        found += (loss.smooth_alpha, loss.smooth_scale, loss.smoothness, loss.border, data.height, data.width)
        assert found == expected
        assert loss.normalize and config.model.name == "flownet_s" and config.model.options == {}
        augment = config.augment
        colours = (*augment.contrast, augment.brightness, *augment.color, *augment.gamma)
        assert colours == (0.7, 1.3, 0.2, 0.9, 1.1, 0.7, 1.5)


def test_learns_without_ground_truth(tmp_path: Path) -> None:
    """Held-out pairs: a quarter of the error of "nothing moves", and under 0.75 pixels, all pixels counted."""
    words = [*TINY, "--data.objects=0", "--data.motion=3", "--data.length=256", "--data.val_length=32"]
    words += ["--data.batch_size=16", "--loss.smoothness=0.03", "--optimizer.lr=3e-3"]
    words += ["--optimizer.milestones=[300,400]", "--trainer.max_epochs=31", "--trainer.check_val_every_n_epoch=31"]
    result = train(load_config("flow_synthetic", [*words, f"--output={tmp_path}"]))
    assert result is not None and result.before is not None and result.after is not None
    assert result.step == 496
    assert result.after["epe"] < 0.75 and result.after["epe"] < result.after["motion"] / 3.5
    assert result.before["epe"] > 0.8 * result.after["motion"]
    assert result.after["epe_noc"] < result.after["epe"]


@pytest.fixture(scope="module")
def frames(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Real frames of KITTI in the layouts of the presets, with the flow of a shift for ground truth."""
    root = tmp_path_factory.mktemp("flow")
    drive = "2011_09_26/2011_09_26_drive_0052_sync/image_02/data"
    raw, training, chairs = root / "raw", root / "training", root / "chairs"
    for folder in (raw / drive, training / "image_2", training / "flow_occ", training / "flow_noc", chairs):
        folder.mkdir(parents=True)
    paths = sorted((real_data / "kitti_raw" / drive).glob("*.png"))[:3]
    frames = [Image.open(path).crop((400, 150, 540, 220)) for path in paths]
    for path, frame in zip(paths, frames, strict=True):
        frame.save(raw / drive / path.name)
    flow = np.zeros((2, 70, 140))
    flow[0] = 3
    for kind, rows in (("flow_occ", 10), ("flow_noc", 20)):
        valid = np.zeros(flow.shape[1:], bool)
        valid[rows:] = True
        write_flow_png(training / kind / "000000_10.png", flow, valid)
    for suffix, frame in zip(("10", "11"), frames, strict=False):
        frame.save(training / "image_2" / f"000000_{suffix}.png")
    for n, pair in enumerate(((0, 1), (1, 2), (0, 2)), 1):
        for k, index in enumerate(pair, 1):
            frames[index].save(chairs / f"{n:05d}_img{k}.ppm")
        write_flo(chairs / f"{n:05d}_flow.flo", np.full((2, 70, 140), 2.0))
    (chairs / "FlyingChairs_train_val.txt").write_text("1\n1\n2\n")
    return {"flow_kitti": raw, "flow_chairs": chairs, "training": training}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_few_steps(preset: str, frames: dict[str, Path], tmp_path: Path) -> None:
    """The preset with its network, narrower, its loss and its augmentation."""
    words = [*CPU, "--model.options={width: 4}", "--trainer.max_steps=2", "--data.batch_size=2", f"--output={tmp_path}"]
    words += [f"--data.root={frames[preset]}"] if preset in frames else ["--data.length=2", "--data.val_length=1"]
    words += ["--data.height=64", "--data.width=128"]
    words += [f"--data.val_root={frames['training']}"] if preset == "flow_kitti" else []
    config = load_config(preset, words)
    lines: list[str] = []
    result = train(config, say=lines.append)
    assert result is not None and result.after is not None and result.step == 2
    assert lines[0].startswith(f"training flownet_s on 2 pairs of {config.data.name} at 64x128, into ")
    assert result.after["images"] == 1 and result.protocol.name == config.protocol
    assert all(math.isfinite(result.after[column]) for column in result.protocol.columns)
    if preset == "flow_kitti":
        assert result.after["motion"] == 3
    assert result.panel.is_file()
    trained = load_trained(result.folder)
    assert trained.config == config and trained.system is Flow
    assert all(torch.isfinite(value).all() for value in trained.net.state_dict().values())


def flow_system(*words: str) -> Any:
    config = load_config("flow_synthetic", [*TINY, *PLAIN, *words])
    return Flow(config, create_model("tiny_flow_net"))


def batch_of(count: int = 2) -> dict[str, Any]:
    data = SyntheticFlow(count, 32, 32)
    return collate_flow([data[index] for index in range(count)])


def loss_at(system: Any, step: int) -> Tensor:
    loss: Tensor = system.step(batch_of(), StepInfo(step, torch.Generator().manual_seed(0), False))["loss"]
    return loss


def test_the_backward_flow_enters_by_a_ramp() -> None:
    words = ["--loss.backward=0.5", "--loss.backward_from=100", "--loss.backward_to=200"]
    system = flow_system(*words)
    forward = loss_at(system, 100)
    batch = batch_of()
    swapped = {**batch, "first": batch["second"], "second": batch["first"]}
    backward = system.step(swapped, StepInfo(0, torch.Generator().manual_seed(0), False))["loss"]
    for step, weight in ((0, 0.0), (150, 0.25), (200, 0.5), (1000, 0.5)):
        torch.testing.assert_close(loss_at(system, step), (1 - weight) * forward + weight * backward)
    with pytest.raises(ValueError, match=r"loss.backward: expected a weight in \[0, 1\], got 1.5"):
        flow_system("--loss.backward=1.5")
    for start, end in ((-1, 5), (200, 100)):
        with pytest.raises(ValueError, match=f"loss.backward_from: expected 0 <= .*, got {start} and {end}"):
            flow_system(f"--loss.backward_from={start}", f"--loss.backward_to={end}")


def test_the_hidden_border_is_the_mean_for_the_network_alone() -> None:
    system = flow_system("--loss.border=0.25", "--augment.hide_border=true")
    seen: list[Tensor] = []
    system.flow_net.infer = lambda first, second: seen.extend([first, second]) or torch.zeros(2, 2, 32, 32)  # type: ignore[func-returns-value]
    loss_at(system, 0)
    assert len(seen) == 2
    for images, clean in zip(seen, (batch_of()["first"], batch_of()["second"]), strict=True):
        assert torch.equal(images[..., 8:24, 8:24], clean[..., 8:24, 8:24] / 255)
        assert (images[..., :8, :] == 0).all() and (images[..., 24:] == 0).all()  # this network subtracts no mean


def test_the_rate_is_halved_at_steps(tmp_path: Path) -> None:
    words = ["--optimizer.lr=0.5", "--optimizer.milestones=[2,3]"]
    options = TrainingModule(flow_system(*words)).configure_optimizers()
    assert options["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(5):
        rates.append(options["optimizer"].param_groups[0]["lr"])
        options["optimizer"].step()
        options["lr_scheduler"]["scheduler"].step()
    assert rates == [0.5, 0.5, 0.25, 0.125, 0.125]


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"data.width: expected a multiple of 64, got 100"):
        config = load_config("flow_synthetic", ["--data.width=100", "--model.options.width=4"])
        system_of(config).create(config, None)
    with pytest.raises(
        ValueError, match=r"model.name: expected a network of optical flow such as flownet_s, got posecnn"
    ):
        config = load_config("flow_synthetic", ["--model.name=posecnn", "--model.options={}"])
        system_of(config).create(config, None)
    with pytest.raises(ValueError, match=r"data.root: expected the folder of the chairs data, got none"):
        Flow.training_data(load_config("flow_chairs"))
    assert Flow.evaluation_data(load_config("flow_kitti")) is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    output = tmp_path_factory.mktemp("runs")
    words = [*TINY, "--data.length=8", "--data.val_length=3", "--trainer.max_epochs=1", f"--output={output}"]
    assert main(["train", "flow_synthetic", *words]) == 0
    return output / "flow_synthetic" / "001"


class TestCommands:
    @pytest.fixture
    def clip(self, tmp_path: Path) -> Path:
        folder = tmp_path / "clip"
        folder.mkdir()
        for index in range(3):
            pixels = np.random.default_rng(index).integers(0, 256, (30, 42, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"frame{index + 8}.png")
        return folder

    def expected(self, trained: Path, clip: Path, index: int) -> np.ndarray:
        first, second = (
            torch.from_numpy(np.array(Image.open(clip / f"frame{n}.png"))).permute(2, 0, 1) / 255
            for n in (index, index + 1)
        )
        flow: np.ndarray = load_trained(trained).net.predict(first, second).flow[0].permute(1, 2, 0).numpy()
        return flow

    def test_eval_repeats_the_numbers_of_training(self, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["eval", str(trained), "--checkpoint", "best"]) == 0
        lines = capsys.readouterr().out.splitlines()
        after = json.loads((trained / "metrics.json").read_text())["after"]
        assert lines[0].startswith("protocol flow: end-point error averaged over all pixels, Fl = share of pixels")
        assert lines[1].split() == ["EPE", "EPE", "noc", "Fl", "%", "Fl", "noc", "%", "motion"]
        assert lines[2].split()[0] == f"{after['epe']:.3f}" and lines[3] == "3 pairs"

    @pytest.mark.parametrize("kind", ["flo", "png"])
    def test_predict(
        self, trained: Path, clip: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        words = ["--format", kind] if kind == "png" else []
        assert main(["predict", str(trained), str(clip), "--output", str(out), *words]) == 0
        assert capsys.readouterr().out.startswith(f"2 flow fields in {out}: ")
        names = [f"frame{n}_{what}" for n in (8, 9) for what in ("color.png", f"flow.{kind}")]
        assert sorted(path.name for path in out.iterdir()) == names
        for index in (8, 9):
            found, flow = read_flow(out / f"frame{index}_flow.{kind}"), self.expected(trained, clip, index)
            assert found.valid.all() and found.flow.shape == (30, 42, 2)
            assert np.abs(found.flow - flow).max() <= (0 if kind == "flo" else 0.5 / 64 + 1e-6)
            assert np.array(Image.open(out / f"frame{index}_color.png")).shape == (30, 42, 3)

    def test_two_images_and_a_converted_file(self, trained: Path, clip: Path, tmp_path: Path) -> None:
        """A converted file says no system, which then follows from the network."""
        converted, out = tmp_path / "net.safetensors", tmp_path / "out"
        assert main(["convert", str(trained / "last.ckpt"), str(converted)]) == 0
        pair = [str(clip / f"frame{n}.png") for n in (8, 9)]
        assert main(["predict", str(converted), *pair, "--output", str(out)]) == 0
        found = read_flow(out / "frame8_flow.flo").flow
        assert np.array_equal(found, self.expected(trained, clip, 8)) and len(list(out.iterdir())) == 2

    def test_bad_input_is_one_line(
        self, trained: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        image, out = str(clip / "frame8.png"), ["--output", str(tmp_path / "out")]
        Image.fromarray(np.zeros((30, 43, 3), np.uint8)).save(clip / "frame11.png")
        cases: list[tuple[list[str], str]] = [
            (["predict", str(trained), image, *out], "input: expected two images or a folder of frames, got .* alone"),
            (["predict", str(trained), str(clip), *out, "--format", "npy"], "--format: expected flo or png, got npy"),
            (
                ["predict", str(trained), str(clip), *out],
                r"frame11.png: expected the size of frame10.png, 30x42, got 30x43",
            ),
            (
                ["predict", str(trained), image, str(clip), *out],
                "expected images of .* names, got frame8 twice",
            ),
            (["predict", str(trained), image, image, *out], "expected images of different names"),
            (["predict", str(trained), str(clip), *out, "--size", "30x40"], "size: expected multiples of 8, got 30x40"),
            (["eval", str(trained), "--flip"], "--flip: this system has no prediction for mirrored images"),
            (
                ["eval", str(trained), "--data", "motorcycle"],
                "--data: expected data of the system flow, .* of monodepth2",
            ),
            (["eval", str(trained), "--protocol", "nyu"], "protocol: expected one of .*'flow_kitti'.*, got 'nyu'"),
        ]
        for words, message in cases:
            assert main(words) == 1
            (line,) = capsys.readouterr().err.splitlines()
            assert re.search(message, line), line


def test_a_network_without_a_run_has_the_system_of_its_kind() -> None:
    assert system_for(create_model("tiny_flow_net")) is Flow
    with torch.device("meta"):
        assert issubclass(system_for(create_model("fastdepth")), DepthSystem)
    with pytest.raises(ValueError, match=r"net: expected a network of one of the systems .*, got PoseCNN"):
        system_for(create_model("posecnn"))
