"""Measures every case on one device and writes results/<device>/<case>.json and the tables: RESULTS.md and the README's
figures, which are written from the result files alone.

python benches/report.py [--device cuda] [--size 12x192x640] [--rounds 20] [--minutes 3] [case ...]
python benches/report.py --gradient-errors    measures nothing but the error of the reprojection losses' gradients
python benches/report.py --tables             measures nothing: writes the tables anew
"""

import argparse
import math
import sys
import time
import traceback
from pathlib import Path

import torch

from mdepth_fast import _dispatch
from mdepth_fast.bench import measure as core
from mdepth_fast.bench import report
from mdepth_fast.bench.cases import CASES, GPU_CASES, MOTION_SCENES

HERE = Path(__file__).parent
RESULTS, README = HERE / "results", HERE.parent / "README.md"
# On a GPU, where a compilation takes up to a minute, not these: another case has the same graph, or most of it.
COMPILED_ELSEWHERE = ("monodepth_loss", "fastdepth_pruned")


def write_gradient_errors(device: torch.device) -> None:
    """Errors of the reprojection losses' gradients, of eager float32 and of the backend that is chosen first."""
    facts, size, seeds = report.device_facts(device), (1, 192, 640), list(range(10))
    errors = {}
    for case in map(CASES.__getitem__, ("min_reprojection", "monodepth_loss", "view_synthesis_loss", "vid2depth_loss")):
        backend = next(v for v in core.VARIANTS if v not in core.PLAIN and not _dispatch.why_not(case.op, v, device))
        errors[case.name] = core.gradient_errors(case, backend, MOTION_SCENES, seeds, size, device)
    report.write_record(RESULTS, "gradient_error", "x".join(map(str, size)), facts, seeds=seeds, errors=errors)
    report.write_tables(RESULTS, README)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", default="")
    parser.add_argument("--rounds", type=int, default=0)
    help_ = "after three quarters of them nothing more is compiled, after all of them no case begun"
    parser.add_argument("--minutes", type=float, default=math.inf, help=help_)
    parser.add_argument("--gradient-errors", action="store_true")
    parser.add_argument("--tables", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if arguments.tables:
        report.write_tables(RESULTS, README)
        return 0
    if arguments.gradient_errors:
        write_gradient_errors(device)
        return 0
    rounds = arguments.rounds or (20 if device.type == "cuda" else 5)
    wrong, started = [], time.monotonic()
    facts = report.device_facts(device)
    cases = CASES | GPU_CASES if device.type == "cuda" else CASES
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
        print(report.table(case, f"{size} on {report.device_text(facts)}", rows), flush=True)
        report.write_record(
            RESULTS,
            case.name,
            size,
            facts,
            copy_bytes_per_second=speed.copy,
            arithmetic_per_second=speed.arithmetic,
            floor_seconds=speed.floor(case, batch * height * width),
            rows=rows,
        )
        report.write_tables(RESULTS, README)
    if wrong:
        print(f"not measured, see above: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
