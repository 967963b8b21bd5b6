"""A system of one's own through the ordinary commands."""

import re
from pathlib import Path

import pytest
import toy_system

from mdepth_fast.cli import main
from mdepth_fast.inference import load_trained
from mdepth_fast.systems import SYSTEMS, list_presets, load_config

SMALL = ["--model.name=tiny_depth", "--data.name=synthetic", "--data.sources=[-1, 1]", "--data.length=4"]
SMALL += ["--data.height=64", "--data.width=96", "--data.batch_size=2", "--trainer.max_epochs=3"]
SMALL += ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.log_every_n_steps=1"]


def test_it_takes_sixty_lines() -> None:
    source = Path(toy_system.__file__)
    files = (source, source.with_name("toy.yaml"))
    lines = [line for file in files for line in file.read_text().splitlines()]
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 120
    assert SYSTEMS["toy"] is toy_system.Toy and list_presets("toy") == ["toy"]
    assert isinstance(load_config("toy", ["--loss.smoothness=1"]), toy_system.ToyConfig)


def test_it_is_trained_and_evaluated_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import tiny_run  # noqa: F401  (registers tiny_depth)

    assert main(["train", "toy", *SMALL, f"--output={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("training tiny_depth in mode M on 4 samples of synthetic at 64x96")
    folder = tmp_path / "toy" / "001"
    assert (folder / "panel.png").is_file()
    assert re.search(r"^best: .*best\.ckpt \(the smallest val/abs_rel, ", out, re.MULTILINE)
    assert main(["eval", str(folder)]) == 0
    after = re.search(r"^after +(.*)", out, re.MULTILINE)
    assert after and capsys.readouterr().out.splitlines()[2].split()[:6] == after[1].split()[:6]

    from mdepth_fast.training.checkpoint import read_checkpoint

    saved = read_checkpoint(folder / "last.ckpt")
    assert saved["state_dict"]["motion.speed"] != pytest.approx(0.1, abs=1e-5), "its motion learns"
    assert saved["mdepth_fast"]["config"]["system"] == "toy"
    trained = load_trained(folder)
    assert trained.config.loss.smoothness == 0.05
    # And goes on where it ended.
    assert main(["train", "toy", *SMALL, "--trainer.max_epochs=4", f"--output={tmp_path}", "--resume=auto"]) == 0
    out = capsys.readouterr().out
    assert "resuming with other settings than the run had: trainer.max_epochs 3 -> 4\n" in out
    assert "last.ckpt (the last, step 8)" in out
