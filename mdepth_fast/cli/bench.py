"""`mdepth-fast bench`."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Times forward + backward of the ops and of the whole loss in plain PyTorch, torch.compile and every backend."
    )
    parser.add_argument("cases", nargs="*", help="what to time (default: everything)")
    parser.add_argument("--size", default="", help="batch x height x width, such as 4x192x640 (default: per case)")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each, after one warm-up (default: 5)")
    parser.add_argument("--variants", default="", help="comma-separated; default: eager, compile and every backend")
    parser.add_argument("--device", default="auto", help='"cpu", "cuda", ... (default: the GPU where there is one)')
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's)")
    parser.add_argument("--chart", type=Path, default=Path("bench.png"), help="bar chart to write (default: bench.png)")


def run(arguments: argparse.Namespace) -> None:
    import torch

    from mdepth_fast.benchmark import CASES, VARIANTS, chart, measure, table
    from mdepth_fast.cli._common import pick_device, progress

    names = arguments.cases or list(CASES)
    for name in names:
        if name not in CASES:
            raise ValueError(f"cases: expected some of {', '.join(CASES)}, got {name!r}")
    variants = arguments.variants.split(",") if arguments.variants else list(VARIANTS)
    for variant in variants:
        if variant not in VARIANTS:
            raise ValueError(f"--variants: expected some of {', '.join(VARIANTS)}, got {variant!r}")
    size = arguments.size.split("x") if arguments.size else ()
    if size and (len(size) != 3 or not all(number.isdigit() and int(number) > 0 for number in size)):
        raise ValueError(f"--size: expected batch x height x width like 4x192x640, got {arguments.size!r}")
    if arguments.rounds < 1:
        raise ValueError(f"--rounds: expected at least 1, got {arguments.rounds}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = pick_device(arguments.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"

    results = {}
    for name in names:
        batch, height, width = map(int, size) if size else CASES[name].size
        with progress(name) as track:
            results[name] = measure(
                CASES[name],
                batch,
                height,
                width,
                variants=variants,
                device=device,
                rounds=arguments.rounds,
                track=track,
            )
        print(table(CASES[name], f"{batch}x{height}x{width} on {where}", results[name]), end="\n\n", flush=True)
    if "eager" in variants:
        chart(results, arguments.chart, where)
        print(f"chart: {arguments.chart}")
