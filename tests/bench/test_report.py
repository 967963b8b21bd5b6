"""Result files, and that every figure of the README and of RESULTS.md comes from one."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mdepth_fast.bench import report
from mdepth_fast.bench.cases import CASES
from mdepth_fast.bench.measure import Measurement

ROOT = Path(__file__).parents[2]
RESULTS, README = ROOT / "benches" / "results", ROOT / "README.md"
# A measurement has a unit of time or memory, a ratio or a percentage.
_UNITS = r"( ?(ms|us|µs|s|[KMG]i?B|GB/s|TFLOPS|%)|x)"
FIGURE = re.compile(rf"(?<![\w.])\d+(\.\d+)?({_UNITS}(?!\w)| times (faster|slower))")


def test_the_readme_shows_the_result_files():
    text = README.read_text()
    assert report.replace_figures(text, report.readme_figures(report.read_records(RESULTS))) == text, (
        "stale: run `make readme-figures`"
    )


def test_results_md_shows_the_result_files():
    assert (ROOT / "benches" / "RESULTS.md").read_text() == report.results_markdown(report.read_records(RESULTS))


@pytest.mark.parametrize("path", [README, *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: path.name)
def test_no_figure_is_written_by_hand(path):
    text = re.sub(f"{report.BEGIN}.*{report.END}", "", path.read_text(), flags=re.DOTALL)
    assert not [match[0] for match in FIGURE.finditer(text)]


def test_the_pattern_of_a_figure():
    for text in ("0.98 s where", "2.4x", "848 MiB", "takes 110 s of", "AbsRel 5 %", "20 times slower", "1.5 GB"):
        assert FIGURE.search(text), text
    for text in ("4x192x640", "3x3", "AVX2", "Python 3.10", "80 m", "16-bit", "sm_90", "cap 80 or 50 m"):
        assert not FIGURE.search(text), text


def test_every_file_is_whole():
    records = report.read_records(RESULTS)
    assert len(records) > 20
    for path, record in zip(sorted(RESULTS.glob("*/*.json")), records, strict=True):
        assert path.stem == record["case"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"]) and {"torch", "mdepth_fast"} <= set(record["versions"])
        assert record["device"]["kind"] in ("cpu", "cuda") and record["device"]["name"]
        assert sum(key in record for key in ("rows", "errors", "metrics", "training")) == 1, path
        for run in record.get("training", ()):
            assert run["steps"] == max(map(int, run["curve"])), path
            # Those of the comparison of variants are too short to tell.
            assert run["preset"] != path.stem or 0 < run["abs_rel"] < run["constant"], path
        for row in () if "machine" in record else record.get("rows", ()):
            assert (row["seconds"] is None) == bool(row["reason"]) and {"forward", "backward"} <= set(row)


def test_every_figure_says_its_device():
    figures = report.readme_figures(report.read_records(RESULTS))
    names = {report.device_text(record["device"]) for record in report.read_records(RESULTS)}
    tables = figures.split("\n\n")
    rows = [line for table in tables[:3] for line in table.splitlines() if line.startswith("| `") or "**" in line]
    assert len(rows) > 15 and all(any(name in row for name in names) for row in rows)


CPU = {"kind": "cpu", "name": "Some(R) Processor 5", "instruction_set": "avx2", "threads": 2, "load": 0.3}
GPU = {"kind": "cuda", "name": "Some GPU"}


def row(variant, seconds, **more):
    return Measurement(variant, seconds=seconds, seconds_each=[seconds], **more)


def write_some(folder, factor=1.0, device=CPU):
    fused = "cpu" if device is CPU else "cuda"
    rows = [
        row("eager", 0.1, forward=[], backward=[], kept_bytes=2**20, peak_bytes=2**21, error=1e-5),
        Measurement("compile", "torch.compile failed"),
        row(
            fused,
            0.01 * factor,
            forward=[("inverse_warp", fused)],
            backward=[("inverse_warp_backward", fused)],
            kept_bytes=0,
            peak_bytes=0,
            error=1e-6,
        ),
    ]
    return report.write_record(folder, "inverse_warp", "4x192x640", device, floor_seconds=0.001, rows=rows)


def test_a_result_file_and_its_lines(tmp_path):
    path = write_some(tmp_path)
    assert path == tmp_path / "Some_R_Processor_5_2_threads" / "inverse_warp.json"
    assert [p.name for p in path.parent.iterdir()] == ["inverse_warp.json"]
    record = json.loads(path.read_text())
    assert record["rows"][1]["seconds"] is None and record["rows"][2]["forward"] == [["inverse_warp", "cpu"]]
    text = report.results_markdown([record])
    assert "## Some 5, AVX2, 2 threads" in text
    line = "| inverse_warp 4x192x640 | cpu | cpu / cpu | 10 ms | - | 10.0 | - | 10% | 0.0 MiB | 0.0 MiB | 1.0e-06 |"
    assert line in text and "torch.compile failed" not in text
    write_some(tmp_path, device=GPU)
    (line,) = (x for x in report.readme_figures(report.read_records(tmp_path)).splitlines() if "inverse_warp" in x)
    assert line == (
        "| `inverse_warp` | 4x192x640 | Some 5, AVX2, 2 threads | 100 ms | 10 ms | 10x | - "
        "| 10 ms, 10x (Some GPU, 4x192x640) |"
    )


def test_the_newest_file_of_a_kind_of_device_counts(tmp_path):
    record = json.loads(write_some(tmp_path).read_text())
    other = {**record, "date": "2001-01-01", "device": {**CPU, "name": "Old CPU", "threads": 8}}
    figures = report.readme_figures([record, other])
    assert "Some 5" in figures and "Old" not in figures
    assert figures == report.readme_figures([other, record])


def test_a_group_is_added_up(tmp_path):
    names = [name for name, case in CASES.items() if case.group]
    for k, name in enumerate(names, 1):
        report.write_record(tmp_path, name, f"1x{k}x{k}", CPU, rows=[row("eager", 0.004 * k), row("cpu", 0.001 * k)])
    (line,) = (x for x in report.readme_figures(report.read_records(tmp_path)).splitlines() if "nnconv5" in x)
    assert "| 1x1x1 ... 1x5x5 |" in line and "| 60 ms | 15 ms | 4.0x |" in line
    next(tmp_path.glob(f"*/{names[2]}.json")).unlink()  # a sum of some of them would be a wrong figure
    assert "nnconv5" not in report.readme_figures(report.read_records(tmp_path))


def test_gradient_errors_and_runs(tmp_path):
    errors = {"min_reprojection": {"a": {"eager": [2e-4, 4e-4], "cpu": [1e-6, 8e-4]}}}
    report.write_record(tmp_path, "gradient_error", "1x2x3", CPU, seeds=[0, 1], errors=errors)
    run = {"command": "go", "seconds": 61.4, "metrics": {"abs_rel": 0.0402, "d1": 0.9354}}
    report.write_record(tmp_path, "train", "1 pair", CPU, **run)
    records = report.read_records(tmp_path)
    for text in (report.results_markdown(records), report.readme_figures(records)):
        assert "| `min_reprojection` | a | 0.0003, 0.0004 | 0.0004, 0.0008 | 1, 2 |" in text
        assert "`go` takes 61 s on Some 5, AVX2, 2 threads and ends at AbsRel 0.040, delta1 0.935." in text


def test_devices():
    assert report.device_text({**CPU, "load": 2.6}) == "Some 5, AVX2, 2 threads, busy"
    assert report.device_text({**CPU, "load": None}) == "Some 5, AVX2, 2 threads"
    facts = report.device_facts(torch.device("cpu"))
    assert facts["threads"] == torch.get_num_threads() and facts["instruction_set"] in ("avx512", "avx2", "baseline")


def test_ran_text():
    assert report.ran_text(None, None) == "not recorded"
    assert report.ran_text([], []) == "PyTorch / PyTorch"
    assert report.ran_text([("a", "cuda"), ("b", "cuda")], []) == "cuda / PyTorch"
    assert report.ran_text([("a", "cpu"), ("b", "triton")], None) == "cpu+triton"


def test_numbers_that_are_no_numbers_are_null(tmp_path):
    path = report.write_record(tmp_path, "x", "1", GPU, rows=[Measurement("eager", "not here")])
    assert json.loads(path.read_text())["rows"][0]["error"] is None
    with pytest.raises(ValueError):
        report.write_record(tmp_path, "y", "1", GPU, rows=[{"seconds": math.inf}])
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]  # nothing half-written


def test_markers():
    text = f"a\n{report.BEGIN}\nold\n{report.END}\nb\n"
    assert report.replace_figures(text, "new") == f"a\n{report.BEGIN}\nnew\n{report.END}\nb\n"
    for wrong in ("", report.BEGIN, f"{report.END}\n{report.BEGIN}", text + text):
        with pytest.raises(ValueError, match="README: expected one pair of lines"):
            report.replace_figures(wrong, "new")


def test_the_command_writes_the_tables(tmp_path):
    """`make readme-figures` in a copy of the files that it reads and writes."""
    (tmp_path / "benches").mkdir()
    (tmp_path / "benches" / "report.py").write_text((ROOT / "benches" / "report.py").read_text())
    write_some(tmp_path / "benches" / "results")
    (tmp_path / "README.md").write_text(f"head\n{report.BEGIN}\nold\n{report.END}\ntail\n")
    command = [sys.executable, str(tmp_path / "benches" / "report.py"), "--tables"]
    subprocess.run(command, check=True, cwd=tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("head\n") and text.endswith("tail\n") and "old" not in text and "`inverse_warp`" in text
    assert "| inverse_warp 4x192x640 | cpu |" in (tmp_path / "benches" / "RESULTS.md").read_text()
    assert re.search(r"^readme-figures:\n\tpython benches/report\.py --tables$", (ROOT / "Makefile").read_text(), re.M)
