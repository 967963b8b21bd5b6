"""`mdepth-fast data`: from images to a checked folder to training."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_run  # noqa: F401  (registers the tiny networks)
from PIL import Image, ImageFilter

from mdepth_fast.cli import main


def test_prepare_check_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (160, 400, 3), dtype=np.uint8)
    scenery = np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2)))
    for number in range(12):
        Image.fromarray(scenery[:, 2 * number : 2 * number + 320]).save(source / f"{number}.png")
    assert main(["data", "prepare", str(source), str(output), "--width=160"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{output}: 12 frames of 160x80") and "a GUESS" in out and "val_files.txt: 1" in out
    assert main(["data", "check", str(output), f"--json={tmp_path / 'report.json'}"]) == 0
    assert "no problems found" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["frames"] == 12 and report["motion"] == pytest.approx(2 / 320, rel=0.1)
    words = [
        "train",
        "folder",
        f"--data.root={output}",
        f"--data.split={output / 'train_files.txt'}",
        "--data.workers=0",
    ]
    words += ["--model.name=tiny_depth", "--pose.name=tiny_pose", "--data.height=64", "--data.width=96"]
    assert main([*words, f"--output={tmp_path / 'runs'}", "--trainer.max_epochs=1"]) == 0
    assert "on 8 samples of folder at 64x96" in capsys.readouterr().out
    assert main(["data", "prepare", str(source), str(output)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["data", "check", str(output), "--intrinsics=none.txt"]) == 1
    assert "--intrinsics: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["data"], ["data", "nothing"], ["data", "prepare", "a", "b", "--focal=1", "--fov=1"]]
)
def test_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_code:
        main(words)
    assert exit_code.value.code == 2 and "usage: mdepth-fast data" in capsys.readouterr().err
