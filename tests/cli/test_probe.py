"""`mdepth-fast probe` on real frames."""

import json
from pathlib import Path

import pytest
import tiny_run  # noqa: F401  (registers tiny_depth)
from PIL import Image

from mdepth_fast.cli import main


def test_probe_of_a_trained_network(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--model.name=tiny_depth", "--data.height=64", "--data.width=96", "--data.repeat=1", "--trainer.max_epochs=1"]
    assert main(["train", "motorcycle", *tiny, f"--output={tmp_path / 'runs'}"]) == 0
    run, frames = tmp_path / "runs" / "motorcycle" / "001", tmp_path / "frames"
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
