"""The command line: what it writes, what it prints, and how it fails."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny_run
import torch
from PIL import Image

from mdepth_fast.cli import main
from mdepth_fast.inference import load_trained
from mdepth_fast.visualize import colorize

TINY = ["--model.name=tiny_depth", "--data.height=64", "--data.width=96", "--data.repeat=2", "--trainer.max_epochs=2"]
NUMBERS = r"(?:\s+\d+\.\d{3}){9}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on the embedded pair."""
    output = tmp_path_factory.mktemp("runs")
    assert main(["train", "motorcycle", *TINY, f"--output={output}"]) == 0
    return output / "motorcycle" / "001"


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 80 * (index + 1), (50, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"frame{index}.png")
    return folder


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on stderr of a command that fails with exit code 1."""
    assert main(list(words)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("mdepth-fast: error: ")
    return lines[0].removeprefix("mdepth-fast: error: ")


class TestTrain:
    def test_prints_both_tables_and_says_where_the_files_are(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["train", "motorcycle", *TINY, f"--output={tmp_path}"]) == 0
        captured = capsys.readouterr()
        folder = tmp_path / "motorcycle" / "001"
        lines = captured.out.splitlines()
        assert lines[0].startswith("training tiny_depth in mode S on 1 samples of motorcycle at 64x96")
        assert re.fullmatch(r"before: abs_rel [\d.]+, rmse [\d.]+, d1 [\d.]+", lines.pop(1))
        assert re.fullmatch(r"epoch 2 of 2, step 4 of 4: loss [\d.]+, .* images/s, 0:00:00 left", lines.pop(1))
        while lines[1].startswith("epoch "):
            lines.pop(1)
        assert re.fullmatch(r"finished in \d+ s", lines[1])
        assert lines[2].startswith("protocol motorcycle: ")
        assert "no alignment" in lines[2]
        assert lines[3].split()[:2] == ["abs_rel", "sq_rel"]
        assert re.fullmatch(rf"before {NUMBERS}", lines[4])
        assert re.fullmatch(rf"after  {NUMBERS}", lines[5])
        assert lines[6] == f"checkpoint: {folder / 'last.ckpt'} (the last, step 4)"
        best = re.escape(f"best: {folder / 'best.ckpt'} (the smallest val/abs_rel, ")
        assert re.fullmatch(rf"{best}[\d.]+, step 4\)", lines[7])
        assert lines[8:] == [f"panel: {folder / 'panel.png'}"]
        assert captured.err == ""
        metrics = json.loads((folder / "metrics.json").read_text())
        assert f"{metrics['before']['abs_rel']:9.3f}" in lines[4]
        assert f"{metrics['after']['abs_rel']:9.3f}" in lines[5]
        assert metrics["before"]["abs_rel"] != metrics["after"]["abs_rel"]
        assert Image.open(folder / "panel.png").size[0] > 1000
        assert "max_epochs: 2" in (folder / "config.yaml").read_text()

    def test_goes_on_in_the_folder_of_the_run_it_resumes(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["train", "motorcycle", *TINY, f"--output={tmp_path}"]
        assert main([*words, "--trainer.max_epochs=1"]) == 0
        first = json.loads((tmp_path / "motorcycle" / "001" / "metrics.json").read_text())
        capsys.readouterr()
        assert main([*words, "--resume", "auto"]) == 0
        out = capsys.readouterr().out
        assert "resuming with other settings than the run had: trainer.max_epochs 1 -> 2" in out
        assert [path.name for path in (tmp_path / "motorcycle").iterdir()] == ["001"]
        second = json.loads((tmp_path / "motorcycle" / "001" / "metrics.json").read_text())
        assert second["before"] == first["before"]
        assert second["after"] != first["after"]

    def test_own_frames_need_no_ground_truth(
        self, tmp_path: Path, frames: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (frames / "K.txt").write_text("60 0 34.5\n0 60 24.5\n0 0 1\n")
        words = ["train", "folder", *TINY, "--pose.name=tiny_pose", f"--data.root={frames}", "--data.batch_size=2"]
        assert main([*words, "--data.workers=0", f"--output={tmp_path}"]) == 0
        out = capsys.readouterr().out
        assert "in mode M on 1 samples of folder" in out
        assert "no ground truth: no metrics" in out
        assert (tmp_path / "folder" / "001" / "panel.png").is_file()

    def test_a_broken_frame_is_named_or_skipped_and_counted(
        self, tmp_path: Path, frames: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (frames / "K.txt").write_text("60 0 34.5\n0 60 24.5\n0 0 1\n")
        for index in range(3, 6):
            (frames / f"frame{index}.png").write_bytes((frames / "frame0.png").read_bytes())
        broken = frames / "frame5.png"
        broken.write_bytes(broken.read_bytes()[:200])
        words = ["train", "folder", *TINY, "--pose.name=tiny_pose", f"--data.root={frames}", "--data.batch_size=2"]
        words += ["--data.workers=0", f"--output={tmp_path}"]
        assert "frame5.png" in fails(capsys, *words)
        with pytest.warns(UserWarning, match=r"skipped a broken sample: .*frame5\.png"):
            assert main([*words, "--data.skip_bad=true"]) == 0
        assert "skipped 1 samples that could not be read" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["nothing"], "preset: expected one of .*motorcycle.* got 'nothing'"),
            (["nothing.yaml"], "nothing.yaml: no such file"),
            (["motorcycle", "--optimizer.lr=fast"], "optimizer.lr.*float"),
            (["motorcycle", "--speed", "3"], "speed"),
            (["motorcycle", "--data.height=100"], "data.height: expected a multiple of 32, got 100"),
            (["motorcycle", "--data.sources=[-1]"], 'data.sources: the motorcycle pair has .*"stereo".*, got .*-1'),
            (["motorcycle", "--data.batch_size=0"], "batch_size: expected a positive multiple"),
            (["motorcycle", "--model.name=monodepth3"], "no model is called 'monodepth3'"),
            (["motorcycle", "--protocol=best"], "protocol: expected one of .*'best'"),
            (["kitti_mono"], "data.root: expected the folder of the kitti data, got none"),
            (["kitti_mono", "--data.root=/nowhere"], "data.root: no such folder: /nowhere"),
            (["motorcycle", "--resume", "/nowhere/last.ckpt"], "resume: no such checkpoint: /nowhere/last.ckpt"),
        ],
    )
    def test_bad_input_is_one_line(
        self, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert re.search(message, fails(capsys, "train", *words, f"--output={tmp_path}"))
        assert not list(tmp_path.rglob("*.ckpt"))

    def test_debug_shows_the_traceback(self) -> None:
        for words in (["--debug", "train", "nothing"], ["train", "nothing", "--debug"]):
            with pytest.raises(ValueError, match="preset: expected one of"):
                main(words)


class TestEval:
    def test_states_the_protocol_and_repeats_the_numbers_of_training(
        self, trained: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["eval", str(trained)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("protocol motorcycle: ")
        after = json.loads((trained / "metrics.json").read_text())["after"]
        assert lines[2].split()[:2] == [f"{after['abs_rel']:.3f}", f"{after['sq_rel']:.3f}"]
        assert lines[3] == "1 images"

    def test_flip_and_protocol_are_stated(self, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["eval", str(trained / "last.ckpt"), "--flip", "--protocol", "kitti_eigen"]) == 0
        first = capsys.readouterr().out.splitlines()[0]
        assert first.startswith("protocol kitti_eigen: ")
        for part in ("flip post-processing", "Garg crop", "median scaling"):
            assert part in first

    def test_columns_are_the_protocols(self, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name, titles in (
            ("kitti_benchmark", ["SILog", "SqRel/g^2", "AbsRel", "iRMSE", "RMSE"]),
            ("fcrn", ["AbsRel", "RMSE", "log10", "d<1.25", "d<1.25^2", "d<1.25^3"]),
        ):
            assert main(["eval", str(trained), "--protocol", name]) == 0
            lines = capsys.readouterr().out.splitlines()
            assert lines[0].startswith(f"protocol {name}: ") and lines[1].split() == titles
            assert all(float(number) >= 0 for number in lines[2].split()) and lines[3] == "1 images"

    def test_other_data(self, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["eval", str(trained), "--data", "synthetic", "--data.length=2", "--data.workers=0"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("protocol synthetic: ")
        assert lines[3] == "2 images"

    def test_bad_input_is_one_line(self, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "no such checkpoint" in fails(capsys, "eval", str(tmp_path / "none.ckpt"))
        other = tmp_path / "other.ckpt"
        torch.save({"weight": torch.zeros(1)}, other)
        assert f"{other}: expected a checkpoint of `mdepth-fast train`" in fails(capsys, "eval", str(other))
        assert "protocol: expected one of" in fails(capsys, "eval", str(trained), "--protocol", "mine")
        assert "--device: cannot use 'tpu'" in fails(capsys, "eval", str(trained), "--device", "tpu")
        words = ["eval", str(trained), "--data", "folder", f"--data.root={tmp_path}"]
        assert "no ground truth in the data of folder" in fails(capsys, *words)


class TestPredict:
    def expected(self, trained: Path, path: Path) -> np.ndarray:
        image = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] / 255
        return load_trained(trained).net.predict(image).depth[0, 0].numpy()

    def test_png_holds_metres_times_256(
        self, trained: Path, frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        assert main(["predict", str(trained), str(frames), "--output", str(out)]) == 0
        said = capsys.readouterr().out
        what = "metric depth = value / 256, 16-bit PNG, 0 = none, in m for cameras like that of its training"
        assert said == f"3 depth maps in {out}: {what}\n"
        assert sorted(path.name for path in out.glob("*.png")) == sorted(
            f"frame{index}_{kind}.png" for index in range(3) for kind in ("depth", "color")
        )
        for path in sorted(frames.iterdir()):
            stored = np.array(Image.open(out / f"{path.stem}_depth.png"))
            depth = self.expected(trained, path)
            assert stored.dtype == np.uint16
            assert stored.shape == depth.shape == (50, 70)
            np.testing.assert_array_equal(stored, np.rint(depth * 256.0).astype(np.uint16))
            assert np.array(Image.open(out / f"{path.stem}_color.png")).shape == (50, 70, 3)

    def test_npy_of_one_image(self, trained: Path, frames: Path, tmp_path: Path) -> None:
        out, image = tmp_path / "out", frames / "frame1.png"
        assert main(["predict", str(trained), str(image), "--output", str(out), "--format", "npy"]) == 0
        np.testing.assert_array_equal(np.load(out / "frame1_depth.npy"), self.expected(trained, image))

    def test_a_scale_that_does_not_fit_is_counted(
        self, trained: Path, frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["predict", str(trained), str(frames / "frame1.png"), "--output", str(tmp_path), "--scale", "1e5"]
        assert main(words) == 0
        assert "3500 pixels were clamped to 1e-05 .. 0.65535: 16 bits" in capsys.readouterr().out
        assert (np.array(Image.open(tmp_path / "frame1_depth.png")) == 65535).all()

    def test_a_clip_has_one_range_of_colours(self, trained: Path, frames: Path, tmp_path: Path) -> None:
        """The same depth has the same colour in every frame, which a range per frame does not give."""
        ranges = {}
        for mode in ("clip", "frame"):
            out = tmp_path / mode
            words = ["predict", str(trained), str(frames), "--output", str(out), "--range", mode, "--format", "npy"]
            assert main(words) == 0
            (ranges[mode],) = (run["colors"] for run in json.loads((out / "state.json").read_text())["runs"].values())
            for index in range(3):
                depth = np.load(out / f"frame{index}_depth.npy")
                color = np.array(Image.open(out / f"frame{index}_color.png"))
                np.testing.assert_array_equal(color, colorize(depth, ranges[mode]))
        assert ranges["frame"] is None and ranges["clip"][0] < ranges["clip"][1]

    def test_bad_input_is_one_line(
        self, trained: Path, frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "no such image or folder" in fails(capsys, "predict", str(trained), str(tmp_path / "none.png"))
        words = ["predict", str(trained), str(frames), "--output", str(frames)]
        assert "--output: expected another folder than the input" in fails(capsys, *words)
        (frames / "frame1.jpg").write_bytes(b"")
        assert "expected images of different names" in fails(capsys, "predict", str(trained), str(frames))
        broken = tmp_path / "broken.png"
        broken.write_bytes((frames / "frame0.png").read_bytes()[:100])
        assert "broken.png" in fails(capsys, "predict", str(trained), str(broken), "--output", str(tmp_path / "out"))
        (frames / "frame1.jpg").unlink()
        words = ["predict", str(trained), str(frames), "--output", str(tmp_path / "out")]
        for options, message in (
            (["--format=png,exr"], "--format: expected some of png, npy, tiff, ply, color, got exr"),
            (
                ["--format=ply"],
                "--K: expected the camera matrix, which the point clouds of --format ply need, got none",
            ),
            (["--K=1,2,3"], "--K: expected fx,fy,cx,cy or a file of a 3x3 matrix, got '1,2,3'"),
            (["--K=none.txt"], "none.txt: cannot be read"),
            (["--temporal"], "--temporal: expected a network of depth up to scale, got one of kind metric"),
        ):
            assert message in fails(capsys, *words, *options)

    def test_a_video_and_a_broken_image(
        self, trained: Path, frames: Path, real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Several inputs and formats; what cannot be read is named, and the exit code says so."""
        (frames / "frame1.png").write_bytes(b"")
        out, clip = tmp_path / "out", real_data / "video" / "test_video.mp4"
        words = ["predict", str(trained), str(frames / "*.png"), str(clip), f"--output={out}", "--frames=3"]
        words += ["--format=npy", "--format=ply,tiff", "--K=900,900,640,360", "--side-by-side", "--batch-size=2"]
        assert main(words) == 3
        captured = capsys.readouterr()
        assert f"{out / 'test_video_depth.mp4'}: 3 frames, metric depth in m" in captured.out
        assert f"2 depth maps in {out}: metric depth as point clouds, PLY, in m " in captured.out
        warnings = captured.err.splitlines()
        assert any("1 left out:" in line and "frame1.png: cannot be read as an image" in line for line in warnings)
        assert any("--K: intrinsics fx 900" in line and "70x50" in line for line in warnings)
        names = {f"frame{n}_{kind}" for n in (0, 2) for kind in ("color.png", "depth.npy", "depth.ply", "depth.tiff")}
        assert names <= {path.name for path in out.iterdir()}
        assert len(list((out / "test_video").glob("*.ply"))) == 3
        assert main([*words, "--scale=1000"]) == 1
        assert "predicted with --scale 256.0, not 1000.0; give another --output" in capsys.readouterr().err


SUPERVISED = [
    "--model.name=tiny_metric",
    "--model.options={}",
    "--data.name=rgbd_folder",
    "--data.view=whole",
    "--data.cache_size=null",
    "--data.batch_size=4",
    "--data.repeat=1",
    "--data.workers=0",
    "--augment.height=32",
    "--augment.width=48",
    "--augment.resize=null",
    "--stages={coarse: 3}",
    "--protocol=nyu",
]


class TestProbe:
    def test_reports_plots_and_examples(
        self, trained: Path, real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run, frames = trained, tmp_path / "frames"
        frames.mkdir()
        for path in sorted((real_data / "kitti_raw").rglob("*0052*/image_02/data/*.png"))[:3]:
            with Image.open(path) as image:
                image.resize((310, 93)).save(frames / path.name)
        (frames / "K.txt").write_text("180 0 152\n0 180 43\n0 0 1\n")
        capsys.readouterr()
        words = [str(run), str(frames), "--frames=2", "--pitch=8", f"--output={tmp_path / 'out'}"]
        assert main(["probe", *words]) == 0
        printed = capsys.readouterr().out
        assert "2 frames" in printed and "position only" in printed
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert report["frames"] == ["0000000000.png", "0000000002.png"]
        assert set(report["experiments"]) == {"position_and_size", "pitch", "roll", "obstacle", "colour"}
        assert report["experiments"]["roll"]["slope"]["frames"] == 2
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "report.png", "examples.png"}

        for extra, message in (
            (["--experiments=roll,pich"], "experiments: expected some of"),
            (["--intrinsics=none.txt"], "no such file"),
            (["--obstacle-width=900"], "room for an obstacle"),
            (["--frames=0"], "--frames"),
            (["--distance=nan"], "distance"),
        ):
            assert main(["probe", *words, *extra]) == 1
            assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images with depth."""
    return tiny_run.write_frames(tmp_path_factory.mktemp("frames") / "root")


@pytest.fixture(scope="module")
def supervised(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on it."""
    output = tmp_path_factory.mktemp("runs")
    words = [f"--data.root={root}", f"--data.val_split={root}", f"--output={output}"]
    assert main(["train", "fcrn_nyu", *SUPERVISED, *words]) == 0
    return output / "fcrn_nyu" / "001"


class TestSupervised:
    """One network of measured depth through all commands."""

    def test_train_says_what_it_does(self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = [f"--data.root={root}", f"--data.val_split={root}", f"--output={tmp_path}"]
        assert main(["train", "fcrn_nyu", *SUPERVISED, *words, "--protocol=fcrn"]) == 0
        captured = capsys.readouterr()
        lines = captured.out.splitlines()
        folder = tmp_path / "fcrn_nyu" / "001"
        expected = f"training tiny_metric on 8 samples of rgbd_folder at 32x48, coarse for 3 steps, into {folder}"
        assert lines[0] == expected
        lines = [line for line in lines if not line.startswith(("before: ", "epoch "))]
        assert lines[2].startswith("protocol fcrn: ")
        assert lines[3].split() == ["abs_rel", "rmse", "log10", "d1", "d2", "d3"], "the columns of the protocol"
        assert re.fullmatch(r"after  (?:\s+\d+\.\d{3}){6}", lines[5])
        assert lines[6] == f"checkpoint: {folder / 'last.ckpt'} (the last, step 3)"
        assert lines[-1] == f"panel: {folder / 'panel.png'}"
        assert captured.err == ""

    def test_eval_repeats_the_numbers_of_training(self, supervised: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["eval", str(supervised)]) == 0
        lines = capsys.readouterr().out.splitlines()
        after = json.loads((supervised / "metrics.json").read_text())["after"]
        assert lines[0].startswith("protocol nyu: ")
        assert lines[2].split()[:2] == [f"{after['abs_rel']:.3f}", f"{after['sq_rel']:.3f}"]
        assert lines[3] == "8 images"

    def test_eval_on_data_of_the_other_task(
        self, supervised: Path, trained: Path, root: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["eval", str(supervised), "--data", "motorcycle"]) == 0
        assert capsys.readouterr().out.splitlines()[3] == "1 images"
        words = ["--data", "dpt_nyu", "--data.name=rgbd_folder", f"--data.root={root}", f"--data.val_split={root}"]
        assert main(["eval", str(trained), *words, "--data.workers=0"]) == 0
        assert capsys.readouterr().out.splitlines()[3] == "8 images"
        assert "no ground truth in the data of dpt_nyu" in fails(capsys, "eval", str(trained), *words[:-1])

    def test_predict(self, supervised: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        image = root / "images" / "003.png"
        assert main(["predict", str(supervised), str(image), "--output", str(tmp_path), "--format", "npy"]) == 0
        assert "metric depth as float32 npy, in m" in capsys.readouterr().out
        pixels = torch.from_numpy(np.array(Image.open(image))).permute(2, 0, 1)[None] / 255
        expected = load_trained(supervised).net.predict(pixels).depth[0, 0].numpy()
        np.testing.assert_array_equal(np.load(tmp_path / "003_depth.npy"), expected)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["fcrn_nyu"], "data.root: expected the folder of the nyu_labelled data, got none; give --data.root"),
            (["fcrn_nyu", "--loss.name=huber"], "loss.name.*huber"),
            (["fcrn_nyu", "--pose.name=posecnn"], "pose.name"),
            (["dpt_kitti", "--data.view=left"], "data.view.*left"),
            (["dorn_nyu", "--data.root=ROOT", "--data.name=rgbd_folder"], "model.weights: dorn_resnet101_nyu does not"),
            (["dorn_nyu", "--data.root=ROOT"], "nyu_depth_v2_labeled.mat: no such file"),
            (["dorn_kitti", "--data.root=ROOT"], "train: no such folder"),
        ],
    )
    def test_bad_input_is_one_line(
        self, words: list[str], message: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = [word.replace("ROOT", str(root)) for word in words]
        assert re.search(message, fails(capsys, "train", *words, f"--output={tmp_path}"))
        assert not list(tmp_path.iterdir())


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_help_and_info_need_torch_and_numpy_only() -> None:
    result = python(
        "import sys\n"
        "for name in ('lightning', 'jsonargparse', 'yaml', 'tensorboard', 'rich', 'PIL', 'skimage', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "from mdepth_fast.cli import main\n"
        "codes = [main(['info']), main(['train', 'motorcycle']), main(['predict', 'weights', '.'])]\n"
        "print(codes)\n"
        "main(['--help'])\n"
    )
    assert result.returncode == 0, result.stderr
    assert "[0, 1, 1]" in result.stdout
    assert "min_reprojection" in result.stdout
    for command in ("train", "eval", "predict", "bench", "info"):
        assert re.search(rf"^    {command} ", result.stdout, re.MULTILINE)
    training, prediction = result.stderr.splitlines()
    assert training.endswith('is not installed: pip install "mdepth-fast[train]"'), training
    assert prediction == "mdepth-fast: error: .: no images in this folder", "it comes as far as that without them"


def test_info_lists_networks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--models", "depth_anything_v2_small*"]) == 0
    head, relative, *metric = (re.split(r"  +", line) for line in capsys.readouterr().out.splitlines())
    assert head == ["model", "parameters", "input", "output"] and len(metric) == 2
    about = ["24,785,089", "about 518x518", "inverse depth up to scale and shift"]
    assert relative == ["depth_anything_v2_small", *about] and metric[0][-1] == "depth in m"
    assert main(["info", "--models", "nothing*"]) == 1
    assert "no network is called like 'nothing*'" in capsys.readouterr().err


def test_wrong_usage_exits_with_2() -> None:
    for words in (["fly"], [], ["predict"], ["info", "now"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2


def test_help_lists_the_presets_of_every_system(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    before, _, after = out.partition("presets of monodepth2:\n")[2].partition("\npresets of supervised:\n")
    assert re.search(r"^  kitti_mono +Monodepth2", before, re.MULTILINE)
    assert re.search(r"^  fcrn_nyu +FCRN", after, re.MULTILINE)
    with pytest.raises(SystemExit):
        main(["train", "dorn_kitti", "--help"])
    assert "--data.depth_root: the annotated depth" in capsys.readouterr().out


def test_help_of_a_preset_lists_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "kitti_stereo", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--optimizer.step_size STEP_SIZE step: epochs between the drops. (type: int, default: 15)" in text
    assert "default: kitti_stereo" in text


def test_ctrl_c_ends_a_training_run_with_130_and_one_line(tmp_path: Path) -> None:
    words = ["train", "motorcycle", *TINY, "--model.name=monodepth2_resnet18", "--trainer.max_epochs=1000"]
    with subprocess.Popen(
        [sys.executable, "-m", "mdepth_fast", *words, f"--output={tmp_path}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell's background job ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        guard = threading.Timer(300, process.kill)
        guard.start()
        try:
            assert process.stdout is not None
            assert "training monodepth2_resnet18" in process.stdout.readline()
            threading.Event().wait(5)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate()
        finally:
            guard.cancel()
    assert process.returncode == 130, errors
    assert re.fullmatch(
        r"mdepth-fast: interrupted by SIGINT at step \d+; "
        r"(no checkpoint yet|checkpoint: \S+last\.ckpt \(step \d+\); go on with --resume \S+001)\n",
        errors,
    )
