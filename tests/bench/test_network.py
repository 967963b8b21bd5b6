"""Speed of a network's inference: what is measured, in which batches, and what is said of it."""

import json
import math
import re

import pytest
import tiny_run  # noqa: F401  (registers the tiny networks)
import torch

from mdepth_fast.bench import measure, network
from mdepth_fast.bench.network import (
    VARIANTS,
    InferenceSpeed,
    default_size,
    engine_speeds,
    measure_network,
    network_table,
)
from mdepth_fast.bench.published import PUBLISHED
from mdepth_fast.bench.report import read_records, results_markdown
from mdepth_fast.cli import main
from mdepth_fast.models import create_model, list_models

SMALL = {"encoder_channels": (8,) * 14, "decoder_channels": (8,) * 5}


@pytest.fixture(autouse=True)
def compiler(monkeypatch, tmp_path):
    """Compiles nothing, as that takes longer than all of these tests; `compiled` counts."""
    monkeypatch.setenv("MDEPTH_CACHE", str(tmp_path / "cache"))
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda call, **options: compiled.append(options) or call)
    monkeypatch.setattr(measure, "PAUSE", 0.0)
    monkeypatch.setattr(measure, "BLOCK", 0.0)
    return compiled


def nothing_is_faster(monkeypatch):
    monkeypatch.setattr(network, "seconds", lambda step, device: 1e9)


def test_all_variants(compiler, monkeypatch):
    nothing_is_faster(monkeypatch)
    monkeypatch.setattr("mdepth_fast.engines.runtimes._instructions", lambda: "avx2")
    monkeypatch.setattr("mdepth_fast.engines.runtimes.missing", lambda packages: packages[0])  # or it takes seconds
    rows = measure_network(create_model("fastdepth", **SMALL), (32, 64), rounds=3)
    assert [row.variant for row in rows] == list(VARIANTS) and compiler == [{"dynamic": False}]
    measured = {row.variant: row for row in rows if not row.reason}
    assert measured.keys() == {"eager", "compile", "native"}
    for row in measured.values():
        assert row.batch == 1 and row.error < 1e-4 and row.ratio > 0
        assert len(row.latency_each) == len(row.batch_seconds_each) == 3
        assert row.latency > 0 and row.start_up > 0 and row.images_per_second == 1 / row.batch_seconds
    assert rows[0].ran == [] and {op for op, _ in rows[2].ran} == {"conv_stack"}
    assert rows[3].reason == 'engine: onnxruntime is missing: pip install "mdepth-fast[onnxruntime]"'
    assert rows[5].reason == "dtype: this CPU has no units for bfloat16 (AMX or AVX512-BF16); take float32"
    speeds = engine_speeds(rows, "float32")
    assert speeds["torch"] == 1 and speeds["native"] == measured["native"].ratio and "compile" not in speeds


@pytest.mark.parametrize("most", [1, 4, 16])
def test_batches_double_until_nothing_is_gained(monkeypatch, most):
    seen = []

    def seconds(step, device):
        seen.append(len(step.args[0]))
        return max(1.0, len(step.args[0]) / most)

    monkeypatch.setattr(network, "seconds", seconds)
    monkeypatch.setattr(network, "peak_bytes", lambda step, device: 0)
    best = network._best_batch(lambda x: x, lambda n: (torch.ones(n),), torch.device("cpu"), 1.0, lambda d: None)
    assert best == most
    assert list(dict.fromkeys(seen)) == [2**k for k in range(1, most.bit_length() + 1)], "and one beyond the best"


def test_batches_end_where_the_memory_does(monkeypatch):
    monkeypatch.setattr(network, "peak_bytes", lambda step, device: 1000 * len(step.args[0]))

    def best(free=lambda device: None, error=None):
        def call(x):
            if error and len(x) > 8:
                raise error
            return x

        def seconds(step, device):
            step()
            return 1.0

        monkeypatch.setattr(network, "seconds", seconds)
        return network._best_batch(call, lambda n: (torch.ones(n),), torch.device("cpu"), 1.0, free)

    assert best(free=lambda device: 10_001) == 8, "1000 bytes an image, and a fifth is left"
    assert best(error=torch.OutOfMemoryError("CUDA out of memory")) == 8
    assert best(error=RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")) == 8
    with pytest.raises(RuntimeError, match="something else"):
        best(error=RuntimeError("something else"))
    assert network.free_bytes(torch.device("cpu")) > 2**20


def test_a_variant_that_fails_or_is_wrong_is_not_timed(monkeypatch):
    nothing_is_faster(monkeypatch)
    monkeypatch.setattr(torch, "compile", lambda call, **options: lambda images: 1.1 * call(images))
    rows = measure_network(create_model("tiny_depth"), (32, 32), rounds=1, variants=["eager", "compile"])
    assert rows[1].reason == "its result is off by 0.1" and math.isnan(rows[1].latency)

    def fails(call, **options):
        raise RuntimeError("no C++ compiler\nmore")

    monkeypatch.setattr(torch, "compile", fails)
    rows = measure_network(create_model("flownet_s", width=4), (64, 64), rounds=1, variants=VARIANTS[:3])
    assert rows[0].latency > 0 and rows[1].reason == "RuntimeError: no C++ compiler" and rows[2].latency > 0
    assert (
        "  compile             not here: RuntimeError: no C++ compiler" in network_table("flow", rows, ()).splitlines()
    )


@pytest.mark.parametrize("name", ["posecnn", "sfmlearner_pose", "tiny_depth"])
def test_networks_of_other_inputs(name, monkeypatch):
    nothing_is_faster(monkeypatch)
    (row,) = measure_network(create_model(name), (64, 64), rounds=1, variants=["eager"])
    assert row.latency > 0
    with pytest.raises(ValueError, match="SharedPoseNet: it reads the features of a depth network"):
        measure_network(create_model("posenet_shared"), (64, 64))


def test_the_figures_of_papers():
    assert set(PUBLISHED) <= set(list_models())
    stated = {"dpt_large": 28.6, "dpt_base": 58.8, "dpt_hybrid": 26.3, "fastdepth_pruned": 178}
    assert {name: 1 / PUBLISHED[name][0].seconds for name in stated} == pytest.approx(stated)
    assert str(PUBLISHED["dpt_large"][0]).startswith("28.6 images/s (35 ms) on an RTX 2080 with")
    for name, figures in PUBLISHED.items():  # a default that the paper's network does not take would be an error
        assert default_size(create_model(name) if "fast" in name else None, figures[0].size) == figures[0].size
    rows = [InferenceSpeed("eager", latency=0.5, batch=4, batch_seconds=1.0, start_up=2.0, ratio=1.0, error=0.0)]
    lines = network_table("dpt_large on x", rows, PUBLISHED["dpt_large"]).splitlines()
    assert lines[2].split() == ["eager", "500.00", "ms", "2", "4", "4", "1.00", "0e+00", "2.0", "s", "PyTorch"]
    assert lines[3].startswith("  published, other hardware: 28.6 images/s (35 ms) on an RTX 2080")


class TestCommand:
    def test_a_folder_and_a_name(self, tmp_path, capsys, monkeypatch):
        nothing_is_faster(monkeypatch)
        monkeypatch.setattr("mdepth_fast.engines.runtimes.missing", lambda packages: packages[0])  # or it takes seconds
        net = create_model("fastdepth", **SMALL, input_size=(64, 96))
        net.save_pretrained(tmp_path / "net")
        words = [str(tmp_path / "net"), "tiny_depth", "--rounds=1", f"--json={tmp_path / 'r.json'}", "--device=cpu"]
        words.append(f"--save={tmp_path / 'results'}")
        assert main(["bench", *words]) == 0
        out = capsys.readouterr().out
        assert f"{tmp_path / 'net'}  64x96, 0.00" in out and "tiny_depth  192x640, 0.0" in out
        assert (
            len(re.findall(r"\n  native +\d", out)) == 2
            and "published, other hardware: 122 images/s (8.2 ms) on the GPU" in out
        )
        first, second = json.loads((tmp_path / "r.json").read_text())
        assert (first["case"], first["size"], second["size"]) == ("fastdepth", "64x96", "192x640")
        assert [row["variant"] for row in first["rows"]] == list(VARIANTS) and first["device"]["threads"] >= 1
        assert first["machine"] and first["engines"] == {}
        assert 'not here: engine: openvino is missing: pip install "mdepth-fast[openvino]"' in out
        records = read_records(tmp_path / "results")
        assert [record["case"] for record in records] == ["network_fastdepth", f"network_{second['case']}"]
        assert results_markdown(records).count("| native | ") == 2
        assert first["published"][0]["device"] == "the GPU of a Jetson TX2 (max-N)"

    def test_a_name_of_both_is_a_case_with_variants(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        words = ["bench", "fastdepth_pruned", "--variants=eager,cpu", "--rounds=1", "--size=1x32x32", "--json=r.json"]
        assert main(words) == 0
        assert capsys.readouterr().out.startswith("fastdepth_pruned  1x32x32 on ")
        assert [row["variant"] for row in json.loads((tmp_path / "r.json").read_text())[0]["rows"]] == ["eager", "cpu"]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (
                ["fastdept"],
                "cases: expected some of inverse_warp, .*, or networks: .*, or files or published weights, or step, "
                "got 'fastdept'",
            ),
            (["tiny_depth", "--size=1x2x3"], "--size: expected height x width like 192x640 for a network"),
            (["tiny_depth", "--size=0x64"], "--size: expected height x width like 192x640 for a network, got '0x64'"),
            (["fastdepth_pruned", "--size=50x64"], "size: FastDepth does not take 50x64: .*multiples of 32"),
            (["tiny_depth", "--variants=eager"], "--variants: expected ops and losses alone"),
            (["tiny_depth", "--threads=-1"], "--threads: expected at least 1, got -1"),
            (["posenet_shared"], "SharedPoseNet: it reads the features"),
            (["hub:user"], "hub:user: expected hub:user/repo"),
        ],
    )
    def test_bad_input_is_one_line(self, words, message, capsys):
        assert main(["bench", *words]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(message, line), line
