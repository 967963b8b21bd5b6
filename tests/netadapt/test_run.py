"""NetAdapt from a configuration: to a file that predicts, over the command line, and on after an interruption."""

import json
import re

import pytest
import torch
import yaml
from tiny_run import tiny_supervised, write_frames
from torch.utils.flop_counter import FlopCounterMode

from mdepth_fast.cli import main
from mdepth_fast.inference import load_trained
from mdepth_fast.netadapt import ChannelGraph, resources
from mdepth_fast.netadapt.run import AdaptSettings, adapt
from mdepth_fast.training.setup import build_depth_net


@pytest.fixture
def config(tmp_path):
    return tiny_supervised(write_frames(tmp_path / "frames"), output=str(tmp_path / "runs"))


SETTINGS = AdaptSettings(budget=0.7, cost="macs", reduction=0.2, multiple=2, holdout=3, short_steps=3, long_steps=2)


def macs(net):
    graph = ChannelGraph(net, torch.rand(1, 3, 32, 48))
    return graph.macs(graph.sizes)


def test_a_network_within_the_budget_that_predicts(config, tmp_path):
    lines = []
    done = adapt(config, SETTINGS, tmp_path / "adapted", say=lines.append)
    result = done.adapted
    assert result.final <= 0.7 * result.initial == pytest.approx(0.7 * macs(build_depth_net(config)))
    assert len(lines) == len(result.steps) > 0 and done.measured is None and 0 <= done.metrics["d1"] <= 1
    net = load_trained(done.weights).net
    assert macs(net) == result.final
    images = torch.rand(2, 3, 32, 48)
    assert torch.equal(net.predict(images).depth, result.model.predict(images).depth)
    # Short-term fine-tuning did train: the channels that were kept are no longer those of the initial network.
    torch.manual_seed(config.seed)
    before = {tuple(row.flatten().tolist()) for row in build_depth_net(config).fine[0][0].weight}
    assert not before & {tuple(row.flatten().tolist()) for row in net.fine[0][0].weight}


def test_the_same_run_again_and_after_an_interruption(config, tmp_path):
    first = adapt(config, SETTINGS, tmp_path / "one")
    again = adapt(config, SETTINGS, tmp_path / "two")
    assert first.adapted.steps == again.adapted.steps
    record = tmp_path / "two" / "iterations" / "steps.json"
    content = json.loads(record.read_text())
    content["steps"] = content["steps"][:1]  # as if it had been killed after the first iteration
    record.write_text(json.dumps(content))
    resumed = adapt(config, SETTINGS, tmp_path / "two", resume=True)
    assert resumed.adapted.steps == first.adapted.steps and resumed.metrics == first.metrics


def operations(function, device, runs):
    """In place of a time, which depends on what else the machine does."""
    with FlopCounterMode(display=False) as counter:
        function()
    return 1e-9 * counter.get_total_flops()


def test_command_line(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(resources, "_fastest", operations)
    preset = tmp_path / "tiny.yaml"
    preset.write_text(yaml.safe_dump({**config.to_dict(), "augment": {"height": 32, "width": 48}}))
    words = [
        "netadapt",
        "tiny_metric",
        "--data",
        str(preset),
        "--budget",
        "0.8",
        "--reduction",
        "0.2",
        "--multiple",
        "2",
    ]
    words += ["--holdout", "3", "--short-steps", "1", "--device", "cpu", "--output", str(tmp_path / "run")]
    assert main([*words, "--cost", "macs", "--optimizer.lr", "1e-3"]) == 0
    output = capsys.readouterr().out
    assert "iteration 1:" in output and "of the initial" in output and "measured:" not in output
    assert main([*words, "--cost", "macs"]) == 1
    assert "holds a run already" in capsys.readouterr().err
    assert main([*words[:-1], str(tmp_path / "timed"), "--cost", "latency"]) == 0
    measured = r"measured: .* the table said .* ms \([+-]0\.0 %\), 0\.\d+ \([+-]0\.0 %\)"
    assert re.search(measured, capsys.readouterr().out)
    for changed, message in (
        (["netadapt", "tiny_metric"], "--data: no preset trains 'tiny_metric'"),
        (["netadapt", "tiny_metric", "--data", "motorcycle"], "--data: expected a preset with measured depth"),
        ([*words, "--holdout", "8"], "holdout: expected 1 to 6 of the 8 samples"),
    ):
        assert main(changed) == 1
        assert message in capsys.readouterr().err
