"""A training step of Monodepth2 and its parts: what is measured, and what is said of it."""

import json

import pytest

from mdepth_fast.bench import report, step
from mdepth_fast.cli import main


def test_a_step_and_its_parts(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(step, "bfloat16_reason", lambda device: "no units here")
    words = ["--size=1x64x64", "--rounds=1", f"--json={tmp_path / 'r.json'}", f"--save={tmp_path}", "--device=cpu"]
    assert main(["bench", "step", *words]) == 0
    out = capsys.readouterr().out
    assert "training step  1x64x64, ms, " in out and "  eager bfloat16          not here: no units here" in out
    (record,) = json.loads((tmp_path / "r.json").read_text())
    plain, ours, *left_out = record["rows"]
    assert (plain["variant"], ours["variant"], plain["ratio"]) == ("eager", "mdepth_fast", 1.0)
    assert [row["reason"] for row in left_out] == ["no units here"] * 2
    for row in (plain, ours):
        assert tuple(row["parts"]) == step.PARTS and sum(row["parts"].values()) == pytest.approx(row["seconds"])
        assert row["error"] < 1e-4
    (saved,) = report.read_records(tmp_path)
    assert saved["case"] == "step" and saved["rows"] == record["rows"] and saved["machine"] == record["machine"]
    lines = report.results_markdown([saved]).splitlines()
    assert "| variant | step | x eager | depth net | pose net | loss | backward | optimiser |" in lines
    assert main(["bench", "step", "--size=1x50x64"]) == 1
    assert "--size: expected height and width multiples of 32 for step" in capsys.readouterr().err
