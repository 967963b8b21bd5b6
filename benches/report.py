"""Measures every case on one device and writes results/<device>/<case>.json and the table RESULTS.md.

python benches/report.py [--device cuda] [--size 12x192x640] [--rounds 20] [--minutes 3] [case ...]
"""

import argparse
import dataclasses
import json
import math
import platform
import re
import sys
import time
import traceback
from pathlib import Path

import torch

import mdepth_fast
from mdepth_fast import benchmark as core
from mdepth_fast.files import replacing

HERE = Path(__file__).parent
# On a GPU, where a compilation takes up to a minute, not these: another case has the same graph, or most of it.
COMPILED_ELSEWHERE = ("monodepth_loss", "fastdepth_pruned")


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = f"{torch.get_num_threads()} threads"
    found = (
        re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if Path("/proc/cpuinfo").exists()
        else None
    )
    return f"{found[1] if found else platform.machine()}, {threads}"


def write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 0.9995 else f"{1e3 * seconds:.0f} ms"


def table(results: Path) -> str:
    """RESULTS.md from all the JSON files there are."""
    lines = [
        "# Results",
        "",
        "Forward + backward, medians of interleaved runs in one process; written by `benches/report.py`. On a GPU the",
        "median is the device's time, host the time that the launches take beside it. Floor: the least bytes at the",
        "measured copy speed or the least arithmetic at the matrix-product speed, whichever takes longer. Error:",
        "relative L2 distance to float64, of the gradients where there are any.",
    ]
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        lines += ["", f"## {records[0]['device']}", ""]
        lines += ["| case | variant | median | host | x eager | x compile | of the floor | kept | peak | error |"]
        lines += ["|---|---|---|---|---|---|---|---|---|---|"]
        for record in records:
            seconds = {row["variant"]: row["seconds"] for row in record["rows"] if not row["reason"]}
            for row in record["rows"]:
                layout = ", channels_last" if row.get("layout") == "channels_last" else ""
                head = f"| {record['case']} {record['size']} | {row['variant']}{layout} |"
                if row["reason"]:
                    continue
                ratios = [
                    f"{seconds[base] / row['seconds']:.1f}" if base in seconds else "-" for base in ("eager", "compile")
                ]
                host = milliseconds(row["host_seconds"]) if row.get("host_seconds") else "-"
                lines.append(
                    f"{head} {milliseconds(row['seconds'])} | {host} | {ratios[0]} | {ratios[1]} | "
                    f"{record['floor_seconds'] / row['seconds']:.0%} | {row['kept_bytes'] / 2**20:.1f} MiB | "
                    f"{row['peak_bytes'] / 2**20:.1f} MiB | {row['error']:.1e} |"
                )
        versions = records[0]["versions"]
        lines += ["", ", ".join(f"{name} {version}" for name, version in versions.items())]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", default="")
    parser.add_argument("--rounds", type=int, default=0)
    help_ = "after three quarters of them nothing more is compiled, after all of them no case begun"
    parser.add_argument("--minutes", type=float, default=math.inf, help=help_)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    rounds = arguments.rounds or (20 if device.type == "cuda" else 5)
    wrong, started = [], time.monotonic()
    name = device_name(device)
    folder = HERE / "results" / re.sub(r"[^\w.-]+", "_", name)
    cases = core.CASES | core.GPU_CASES if device.type == "cuda" else core.CASES
    for case in (cases[case] for case in arguments.cases or cases):
        speed = core.device_speed(device, case.dtype, case.tf32)
        batch, height, width = map(int, arguments.size.split("x")) if arguments.size else case.size
        if device.type == "cuda" and not arguments.size:
            batch = case.gpu_batch
        size = f"{batch}x{height}x{width}"
        spent = (time.monotonic() - started) / (60 * arguments.minutes)
        if spent > 1:
            print(f"{case.name}: left out, the {arguments.minutes:g} minutes are over", flush=True)
            continue
        left_out = ("freeze",) if spent < 0.75 and case.name not in COMPILED_ELSEWHERE else ("freeze", "compile")
        variants = [v for v in core.VARIANTS if device.type != "cuda" or v not in left_out]
        try:
            rows = core.measure(case, batch, height, width, variants=variants, device=device, rounds=rounds)
        except Exception:  # the other cases are still worth their time
            traceback.print_exc()
            wrong.append(case.name)
            continue
        print(core.table(case, f"{size} on {name}", rows), flush=True)
        record = {
            "case": case.name,
            "size": size,
            "device": name,
            "versions": {"mdepth_fast": mdepth_fast.__version__, "torch": torch.__version__},
            "copy_bytes_per_second": speed.copy,
            "arithmetic_per_second": speed.arithmetic,
            "floor_seconds": speed.floor(case, batch * height * width),
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        text = json.dumps(record, indent=1).replace("NaN", "null")
        write(folder / f"{case.name}.json", text + "\n")
        write(HERE / "RESULTS.md", table(HERE / "results"))
    if wrong:
        print(f"not measured, see above: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
