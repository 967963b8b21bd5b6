"""What is written about measurements: lines to read, a chart, result files, RESULTS.md and the README's figures.

A result file is `<results>/<device>/<case>.json`. RESULTS.md and the README's figures are written from those files
alone. The keys of a file:

    case, size, date, versions
    device: {kind: "cpu" or "cuda", name, and for a CPU instruction_set, threads, load (when the run began)}
    rows: the variants of a comparison as `Measurement`s; of an op with floor_seconds, copy_bytes_per_second,
        arithmetic_per_second; of a network with parameters, published, or of a training step ("step"), as
        `InferenceSpeed`s or `StepSpeed`s, with machine and engines: the kind of CPU and the versions of the runtimes
    or errors: {op: {scene: {variant: [error of each seed]}}} with seeds
    or seconds, metrics: of a training run
    or training: runs on ray-cast rooms, each with preset, system, backend, precision, seed, steps, minutes, abs_rel,
        constant (the AbsRel of one constant depth) and curve ({step: AbsRel})
"""

import dataclasses
import datetime
import json
import os
import platform
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import mdepth_fast
from mdepth_fast import _dispatch, _native
from mdepth_fast.bench.cases import CASES, Case
from mdepth_fast.bench.measure import VARIANTS, Measurement
from mdepth_fast.files import replacing

__all__ = [
    "as_record",
    "chart",
    "device_facts",
    "device_text",
    "ran_text",
    "read_records",
    "readme_figures",
    "replace_figures",
    "results_markdown",
    "table",
    "write_record",
    "write_tables",
]

BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"
HEADLINES = ("min_reprojection", "monodepth_loss")  # with memory, in a table of their own
_SETS = {"avx512": "AVX-512", "avx2": "AVX2", "baseline": "baseline x86-64"}

Record = dict[str, Any]


def device_facts(device: torch.device) -> dict[str, Any]:
    """What a result file says of the device, and of how busy a CPU was before the measurement (load average)."""
    if device.type == "cuda":
        return {"kind": "cuda", "name": torch.cuda.get_device_name(device)}
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return {
        "kind": "cpu",
        "name": found[1] if found else platform.machine(),
        "instruction_set": "none: no compiled kernels" if _native.unavailable() else _native.instruction_set(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def device_text(facts: dict[str, Any]) -> str:
    """The device in words; a CPU that had other work to do is called busy."""
    if facts["kind"] != "cpu":
        return str(facts["name"])
    name = re.sub(r"\s+", " ", re.sub(r"\((R|TM|tm)\)|\bProcessor\b|\bCPU\b", "", facts["name"])).strip()
    busy = ", busy" if (facts.get("load") or 0) > 1.25 * facts["threads"] else ""
    threads = f"{facts['threads']} thread{'s' * (facts['threads'] > 1)}"
    return f"{name}, {_SETS.get(facts['instruction_set'], facts['instruction_set'])}, {threads}{busy}"


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def as_record(case: str, size: str, device: dict[str, Any], **content: Any) -> Record:
    """What a result file holds; `rows` of `content` may be `Measurement`s or other dataclasses."""
    if "rows" in content:
        rows = [row if isinstance(row, dict) else dataclasses.asdict(row) for row in content["rows"]]
        content["rows"] = [{key: None if value != value else value for key, value in row.items()} for row in rows]
    return {
        "case": case,
        "size": size,
        "device": device,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "versions": {"mdepth_fast": mdepth_fast.__version__, "torch": torch.__version__},
        **content,
    }


def write_record(results: Path, case: str, size: str, device: dict[str, Any], **content: Any) -> Path:
    """Writes one result file under `results`, see `as_record`."""
    record = as_record(case, size, device, **content)
    folder = device["name"] + (f", {device['threads']} threads" if device["kind"] == "cpu" else "")
    path = results / re.sub(r"[^\w.-]+", "_", folder) / f"{case}.json"
    _write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return path


def read_records(results: Path) -> list[Record]:
    """All result files, sorted by folder and name."""
    return [json.loads(path.read_text()) for path in sorted(results.glob("*/*.json"))]


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 0.9995 else f"{1e3 * seconds:.0f} ms"


def _mebibytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.1f} MiB"


def _times(ratio: float) -> str:
    return f"{ratio:.1f}x" if ratio < 9.95 else f"{ratio:.0f}x"


def ran_text(forward: Sequence[Sequence[str]] | None, backward: Sequence[Sequence[str]] | None) -> str:
    """The backends of the kernels that ran, forward / backward; a direction without any is PyTorch's."""

    def backends(calls: Sequence[Sequence[str]]) -> str:
        return "+".join(dict.fromkeys(backend for _, backend in calls)) or "PyTorch"

    if forward is None:
        return "not recorded"
    return backends(forward) if backward is None else f"{backends(forward)} / {backends(backward)}"


# Lines to read


def table(case: Case, size: str, results: list[Measurement]) -> str:
    """The measurements as lines to read, each with its ratio to eager and to `torch.compile`, and the backends that
    ran, forward / backward."""
    by_name = {one.variant: one for one in results}
    eager, compiled = by_name.get("eager"), by_name.get("compile")
    on_gpu = any(one.host_seconds == one.host_seconds for one in results)
    host = f"{'host':>12}" if on_gpu else ""
    lines = [
        f"{case.name}  {size}, {'forward + backward' if case.differentiable else 'forward'}",
        f"  {'variant':<9}{'median':>12}{host}{'x eager':>9}{'x compile':>11}{'kept':>12}{'peak':>12}{'error':>10}"
        "  ran",
    ]
    for one in results:
        if one.reason:
            lines.append(f"  {one.variant:<9}  not here: {one.reason}")
            continue
        host = f"{one.host_seconds * 1e3:>9.3f} ms" if on_gpu else ""
        ran = ran_text(one.forward, one.backward)
        lines.append(
            f"  {one.variant:<9}{one.seconds * 1e3:>9.3f} ms{host}{_ratio(eager, one):>9}{_ratio(compiled, one):>11}"
            f"{_mebibytes(one.kept_bytes):>12}{_mebibytes(one.peak_bytes):>12}{one.error:>10.1e}  {ran}"
        )
    return "\n".join(lines)


def _ratio(base: Measurement | None, one: Measurement) -> str:
    return f"{base.seconds / one.seconds:.1f}" if base and base.seconds == base.seconds else "-"


def chart(results: dict[str, list[Measurement]], path: Path, title: str) -> None:
    """Bar chart (PNG) of how many times faster than eager each variant is."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = [v for v in VARIANTS if any(m.variant == v and not m.reason for ms in results.values() for m in ms)]
    figure, axes = pyplot.subplots(figsize=(1.5 + 1.9 * len(results), 4), layout="constrained")
    width = 0.8 / len(measured)
    for k, variant in enumerate(measured):
        for x, measurements in enumerate(results.values()):
            by_name = {one.variant: one for one in measurements}
            if variant not in by_name or by_name[variant].reason or "eager" not in by_name:
                continue
            ratio = by_name["eager"].seconds / by_name[variant].seconds
            bar = axes.bar(x + (k - (len(measured) - 1) / 2) * width, ratio, width, color=f"C{k}")
            axes.bar_label(bar, [f"{ratio:.1f}"], fontsize=8)
    for k, variant in enumerate(measured):
        axes.bar(0, 0, color=f"C{k}", label=variant)
    axes.set_xticks(range(len(results)), list(results))
    axes.set_yscale("log")
    axes.set_ylabel("times faster than PyTorch eager")
    axes.set_title(title)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)


# RESULTS.md

_PREFACE = """\
# Results

Written by `benches/report.py` and `pytest benches --save` from `benches/results`. Medians of interleaved runs in one
process, forward + backward where there are gradients. On a GPU the median is the device's time, host the time that the
launches take beside it. Ran: the backends of the kernels, forward / backward; where that is not recorded, the backward
of a `triton` or `nvrtc` row may have run in CUDA. Floor: the least bytes at the measured copy speed or the least
arithmetic at the matrix-product speed, whichever takes longer. Error: relative L2 distance to float64, of the gradients
where there are any."""


_RESULT_TABLE = (
    "| case | variant | ran | median | host | x first | x compile | of the floor | kept | peak | error |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
)


def results_markdown(records: list[Record]) -> str:
    """RESULTS.md: everything there is, device by device."""
    lines = [_PREFACE]
    devices: dict[str, list[Record]] = {}
    for record in records:
        devices.setdefault(device_text(record["device"]), []).append(record)
    for device, those in sorted(devices.items()):
        lines += ["", f"## {device}"]
        ops = [record for record in those if "rows" in record and "machine" not in record]
        if ops:
            lines += ["", *_RESULT_TABLE]
        for record in ops:
            lines += [_result_line(record, row) for row in _measured(record).values()]
        for record in those:
            if "machine" in record:
                lines += ["", *_runtime_table(record)]
        for record in those:
            if "errors" in record:
                lines += ["", *_error_table(record)]
            if "metrics" in record:
                lines += ["", _run_sentence(record)]
        if runs := [run for record in those for run in record.get("training", ())]:
            lines += ["", *_training_table(runs)]
        versions = sorted({", ".join(f"{k} {v}" for k, v in record["versions"].items()) for record in those})
        lines += ["", "; ".join(versions)]
    return "\n".join(lines) + "\n"


def _measured(record: Record) -> dict[str, dict[str, Any]]:
    return {row["variant"]: row for row in record.get("rows", ()) if not row["reason"]}


def _result_line(record: Record, row: dict[str, Any]) -> str:
    rows = _measured(record)
    first, compiled, seconds = next(iter(rows.values())), rows.get("compile"), row["seconds"]
    layout = ", channels_last" if row["layout"] == "channels_last" else ""
    cells = (
        f"{record['case']} {record['size']}",
        row["variant"] + layout,
        ran_text(row["forward"], row["backward"]),
        _milliseconds(seconds),
        _milliseconds(row["host_seconds"]) if row["host_seconds"] else "-",
        f"{first['seconds'] / seconds:.1f}",
        f"{compiled['seconds'] / seconds:.1f}" if compiled else "-",
        f"{record['floor_seconds'] / seconds:.0%}" if "floor_seconds" in record else "-",
        _mebibytes(row["kept_bytes"]),
        _mebibytes(row["peak_bytes"]),
        "-" if row["error"] is None else f"{row['error']:.1e}",
    )
    return f"| {' | '.join(cells)} |"


def _runtime_table(record: Record) -> list[str]:
    """A network on several runtimes, or a training step with its parts."""
    rows = list(_measured(record).values())
    versions = "".join(f", {name} {version}" for name, version in record["engines"].items())
    if record["case"] == "step":
        parts = list(rows[0]["parts"])
        lines = [f"A training step of Monodepth2, ResNet-18, {record['size']}, float32 unless it says otherwise:", ""]
        head = ["variant", "step", "x eager", *parts]
        cells = [[_milliseconds(part) for part in row["parts"].values()] for row in rows]
        times = [row["seconds"] for row in rows]
    else:
        lines = [f"`{record['case']}` {record['size']}, {record['machine']}{versions}:", ""]
        head = ["variant", "one image", "x eager", "images/s, best batch", "error"]
        cells = [[f"{r['batch'] / r['batch_seconds']:.4g} ({r['batch']})", f"{r['error']:.1e}"] for r in rows]
        times = [row["latency"] for row in rows]
    lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row, seconds, rest in zip(rows, times, cells, strict=True):
        line = [row["variant"], _milliseconds(seconds), f"{row['ratio']:.2f}", *rest]
        lines.append(f"| {' | '.join(line)} |")
    return lines


def _error_table(record: Record, whole: bool = False) -> list[str]:
    """Errors of the gradients, a row per op and kind of scene, or per op."""
    seeds, device = record["seeds"], device_text({**record["device"], "load": None})  # which changes no error
    lines = [
        f"Relative L2 error of the gradients against float64, {record['size']}, {len(seeds)} seeds per kind of scene "
        f"({device}), as median and worst:",
        "",
        "| gradients of | scenes | eager | fused | fused / eager |",
        "|---|---|---|---|---|",
    ]
    for op, scenes in record["errors"].items():
        kinds = [list(scenes)] if whole else [*([kind] for kind in scenes), list(scenes)]
        for kind in kinds:
            eager, fused = ([error for one in kind for error in list(scenes[one].values())[which]] for which in (0, 1))
            ratios = [f / e for f, e in zip(fused, eager, strict=True)]
            cells = (f"{statistics.median(each):.2g}, {max(each):.2g}" for each in (eager, fused, ratios))
            lines.append(f"| `{op}` | {', '.join(kind)} | {' | '.join(cells)} |")
    return lines


def _training_table(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Runs on ray-cast rooms, with the predictor of one constant depth."""
    lines = [
        "AbsRel on held-out ray-cast rooms, scaled by the median, after training on video of others:",
        "",
        "| preset | losses | precision | seed | steps | minutes | AbsRel | of a constant depth |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        settings = (run["backend"], run.get("precision", "32-true"), run["seed"])
        cells = (f"`{run['preset']}`", *settings, run["steps"], run["minutes"])
        lines.append(f"| {' | '.join(map(str, cells))} | {run['abs_rel']:.3f} | {run['constant']:.3f} |")
    return lines


def _run_sentence(record: Record) -> str:
    metrics = record["metrics"]
    return (
        f"`{record['command']}` takes {record['seconds']:.0f} s on {device_text(record['device'])} and ends at "
        f"AbsRel {metrics['abs_rel']:.3f}, delta1 {metrics['d1']:.3f}."
    )


# The README's figures

_HEADLINE_TABLE = (
    "| forward + backward | device | time | against eager | against `torch.compile` | kept for backward "
    "| peak extra memory |",
    "|---|---|---|---|---|---|---|",
)
_FIGURE_TABLE = (
    "| | size | device | baseline | fused | against baseline | against `torch.compile` | on a GPU |",
    "|---|---|---|---|---|---|---|---|",
)


def readme_figures(records: list[Record]) -> str:
    """What stands between the markers of the README, from the result files alone."""
    newest: dict[tuple[str, str], Record] = {}
    for record in sorted(records, key=lambda record: record["date"]):
        newest[record["case"], record["device"]["kind"]] = record
    versions = sorted({record["versions"]["torch"] for record in newest.values()})
    lines = [f"Float32; medians of runs in turn within one process; torch {', '.join(versions)}."]
    headlines = [
        line for name in HEADLINES for kind in ("cpu", "cuda") for line in _headline(name, newest.get((name, kind)))
    ]
    if headlines:
        lines += ["", *_HEADLINE_TABLE, *headlines]
    groups: dict[str, list[str]] = {}
    for name, case in CASES.items():
        if name not in HEADLINES:
            groups.setdefault(case.group or name, []).append(name)
    for name in sorted({name for name, _ in newest} - set(CASES)):
        if title := newest.get((name, "cpu"), {}).get("title"):
            groups[title] = [name]
    figures = [line for title, names in groups.items() for line in _figure_line(title, names, newest)]
    if figures:
        lines += ["", *_FIGURE_TABLE, *figures]
    for _, record in sorted(newest.items()):
        if "errors" in record:
            lines += ["", *_error_table(record, whole=True)]
    for _, record in sorted(newest.items()):
        if "metrics" in record:
            lines += ["", _run_sentence(record)]
    return "\n".join(lines)


def _fused(rows: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The row of this package: of the backend that is chosen first."""
    return next((rows[name] for name in (*_dispatch.BACKENDS, "mdepth_fast") if name in rows), None)


def _headline(name: str, record: Record | None) -> list[str]:
    rows, lines = _measured(record or {}), []
    fused = _fused(rows)
    if record is None or fused is None or "eager" not in rows:
        return []
    for row, title in (
        (rows["eager"], f"`{name}`, {record['size']}, PyTorch eager"),
        (rows.get("compile"), "the same under `torch.compile`"),
        (fused, "**the same, fused**"),
    ):
        if row is not None:
            cells = [title, device_text(record["device"]), _milliseconds(row["seconds"])]
            for base in ("eager", "compile"):
                cells.append(_times(rows[base]["seconds"] / row["seconds"]) if base in rows else "-")
            cells += [_mebibytes(row["kept_bytes"]), _mebibytes(row["peak_bytes"])]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _figure_line(title: str, names: list[str], newest: dict[tuple[str, str], Record]) -> list[str]:
    """One row: a case, or the sum of several."""
    sums = {kind: _sum([newest[name, kind] for name in names if (name, kind) in newest]) for kind in ("cpu", "cuda")}
    fused = _fused(sums["cpu"])
    if fused is None or not all((name, "cpu") in newest for name in names):
        return []
    rows, first = sums["cpu"], newest[names[0], "cpu"]
    baseline = next(iter(rows.values()))
    sizes = list(dict.fromkeys(newest[name, "cpu"]["size"] for name in names))
    case = CASES.get(names[0])
    head = title if case is None or case.group else f"`{title}`" + ("" if case.differentiable else ", forward")
    cells = [
        head,
        " ... ".join(sizes[:1] + sizes[1:][-1:]),
        device_text(first["device"]),
        _milliseconds(baseline["seconds"]) + f" ({baseline['variant']})" * (baseline["variant"] != "eager"),
        _milliseconds(fused["seconds"]),
        _times(baseline["seconds"] / fused["seconds"]),
        _times(rows["compile"]["seconds"] / fused["seconds"]) if "compile" in rows else "-",
    ]
    fast = _fused(sums["cuda"])
    if fast and all((name, "cuda") in newest for name in names):
        record, slow = newest[names[0], "cuda"], next(iter(sums["cuda"].values()))
        of = _times(slow["seconds"] / fast["seconds"])
        cells.append(f"{_milliseconds(fast['seconds'])}, {of} ({device_text(record['device'])}, {record['size']})")
    else:
        cells.append("-")
    return [f"| {' | '.join(cells)} |"]


def _sum(records: list[Record]) -> dict[str, dict[str, Any]]:
    """Seconds of the variants that all records have, added up."""
    tables = [_measured(record) for record in records]
    names = [name for name in (tables[0] if tables else ()) if all(name in one for one in tables)]
    return {name: {"variant": name, "seconds": sum(one[name]["seconds"] for one in tables)} for name in names}


def replace_figures(text: str, figures: str) -> str:
    """`text` with what stands between the markers replaced; raises ValueError where there is not one pair of them."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"README: expected one pair of lines {BEGIN} and {END}")
    return text[: text.index(BEGIN)] + f"{BEGIN}\n{figures}\n" + text[text.index(END) :]


def write_tables(results: Path, readme: Path) -> None:
    """Writes RESULTS.md beside the folder `results` and the README's figures, from all result files there are."""
    records = read_records(results)
    figures = replace_figures(readme.read_text(), readme_figures(records))
    _write_text(results.with_name("RESULTS.md"), results_markdown(records))
    _write_text(readme, figures)
