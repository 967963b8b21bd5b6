"""What a model card says of a run, for every system; the folders themselves are in tests/cli/test_convert.py."""

import json

import pytest
import torch

from mdepth_fast.inference import run_history
from mdepth_fast.models import create_model
from mdepth_fast.systems import SYSTEMS


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_has_a_history(tmp_path, name):
    system = SYSTEMS[name]
    config = system.config_class()
    protocol = system.evaluator(config.protocol).protocol
    torch.save({"state_dict": {}, "mdepth_fast": {"config": config.to_dict()}}, tmp_path / "last.ckpt")
    values = {key: 0.5 for key in protocol.columns}
    (tmp_path / "metrics.json").write_text(json.dumps({"after": values, "checkpoints": {"last": {"step": 7}}}))
    lines, results = run_history(tmp_path)
    assert "- optimiser steps: 7" in lines and f"- batch size: {config.data.batch_size}" in lines
    assert results.protocol == protocol.describe() and results.values == values
    # A checkpoint that was moved elsewhere has no metrics, and one beside it must not lend it some.
    (tmp_path / "last.ckpt").rename(tmp_path / "other.ckpt")
    lines, results = run_history(tmp_path / "other.ckpt")
    assert results is None and not any("steps" in line for line in lines)


def test_a_run_without_ground_truth_has_no_results(tmp_path):
    config = SYSTEMS["monodepth2"].config_class()
    torch.save({"state_dict": {}, "mdepth_fast": {"config": config.to_dict()}}, tmp_path / "last.ckpt")
    (tmp_path / "metrics.json").write_text('{"before": null, "after": null, "checkpoints": {"last": {"step": 7}}}')
    assert run_history(tmp_path)[1] is None
    assert run_history(create_model("flownet_s", width=4).save_pretrained(tmp_path / "net")) == ([], None)
