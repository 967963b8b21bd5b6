"""`mdepth-fast bench`."""

import argparse
from pathlib import Path
from typing import Any

_STEP = "step"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Time forward + backward of the ops and of the whole loss in plain PyTorch, torch.compile and every backend. "
        "Or time the inference of networks: latency of one image, and throughput in the best batch, as they are, under "
        "torch.compile, and optimised for inference on every engine that is installed, in float32 and bfloat16; with "
        "the figures of papers, where there are any. Or time a training step of Monodepth2 and its parts: `step`."
    )
    parser.add_argument(
        "cases",
        nargs="*",
        metavar="NAME",
        help="ops and losses, or networks: a registered name, or what `mdepth-fast predict` takes as weights (default: "
        "all ops and losses). fastdepth and fastdepth_pruned are networks, and with --variants or a --size of three "
        "numbers cases of the kernels. step: a training step",
    )
    parser.add_argument(
        "--size",
        default="",
        help="batch x height x width, such as 4x192x640 (default: each case's own); of a network height x width "
        "(default: that of its training or its paper)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each case after one warm-up (default: 5)")
    parser.add_argument(
        "--variants", default="", help="of ops and losses, comma-separated (default: eager, compile and every backend)"
    )
    parser.add_argument("--device", default="auto", help='"cpu", "cuda", ... (default: the GPU if there is one)')
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's)")
    parser.add_argument(
        "--chart",
        type=Path,
        default=Path("bench.png"),
        help="file for the bar chart of ops and losses (default: bench.png)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all results to this file")
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FOLDER",
        help="networks and step: also write a result file each, into the folder of this machine in FOLDER, such as "
        "benches/results",
    )
    parser.add_argument(
        "--save-fastest",
        action="store_true",
        help="networks: also write the speeds of the engines into the package's table, by which engine auto chooses; "
        "only on an idle machine",
    )
    parser.add_argument(
        "--loader",
        nargs=argparse.REMAINDER,
        metavar="PRESET",
        help="time a preset's data loader instead, see `mdepth-fast bench --loader PRESET --help`",
    )


def run(arguments: argparse.Namespace) -> None:
    if arguments.loader is not None:
        _run_loader(arguments.loader)
        return
    import json

    import torch

    from mdepth_fast.bench.cases import CASES
    from mdepth_fast.bench.report import device_facts
    from mdepth_fast.cli._common import pick_device
    from mdepth_fast.files import replacing
    from mdepth_fast.models import list_models
    from mdepth_fast.weights.registry import is_published

    names, models = arguments.cases or list(CASES), list_models()
    kernels = bool(arguments.variants) or arguments.size.count("x") > 1
    networks = [name for name in arguments.cases if name not in (*CASES, _STEP) or (name in models and not kernels)]
    names = [name for name in names if name not in networks and name != _STEP]
    for name in networks:
        if not (name in models or name.startswith("hub:") or Path(name).exists() or is_published(name)):
            raise ValueError(
                f"cases: expected some of {', '.join(CASES)}, or networks: {', '.join(models)}, or files or published "
                f"weights, or step, got {name!r}"
            )
    if arguments.rounds < 1:
        raise ValueError(f"--rounds: expected at least 1, got {arguments.rounds}")
    if arguments.threads < 0:
        raise ValueError(f"--threads: expected at least 1, got {arguments.threads}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = pick_device(arguments.device)
    facts = device_facts(device)
    if names and (arguments.save or arguments.save_fastest):
        raise ValueError(f"--save, --save-fastest: expected networks or step alone, got {names[0]!r}")
    if arguments.save_fastest and (facts["kind"] != "cpu" or (facts["load"] or 0) > 0.5):
        got = f"the load is {facts['load']}" if facts["kind"] == "cpu" else f"got {device}"
        raise ValueError(f"--save-fastest: expected an idle CPU, {got}")
    records = _run_cases(arguments, names, device, facts) if names else []
    if networks:
        records += _run_networks(arguments, networks, device, facts)
    if _STEP in arguments.cases:
        records.append(_run_step(arguments, device, facts))
    if arguments.json:
        with replacing(arguments.json) as temporary:
            temporary.write_text(json.dumps(records, indent=1, allow_nan=False) + "\n")
        print(f"results: {arguments.json}")


def _run_cases(arguments: argparse.Namespace, names: list[str], device: Any, facts: dict[str, Any]) -> list[Any]:
    from mdepth_fast.bench.cases import CASES
    from mdepth_fast.bench.measure import VARIANTS, measure
    from mdepth_fast.bench.report import as_record, chart, device_text, table
    from mdepth_fast.cli._common import progress

    variants = arguments.variants.split(",") if arguments.variants else list(VARIANTS)
    for variant in variants:
        if variant not in VARIANTS:
            raise ValueError(f"--variants: expected some of {', '.join(VARIANTS)}, got {variant!r}")
    size = arguments.size.split("x") if arguments.size else ()
    if size and (len(size) != 3 or not all(number.isdigit() and int(number) > 0 for number in size)):
        raise ValueError(f"--size: expected batch x height x width like 4x192x640, got {arguments.size!r}")
    where = device_text(facts)

    results, records = {}, []
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
        records.append(as_record(name, f"{batch}x{height}x{width}", facts, rows=results[name]))
        print(table(CASES[name], f"{batch}x{height}x{width} on {where}", results[name]), end="\n\n", flush=True)
    if "eager" in variants:
        chart(results, arguments.chart, where)
        print(f"chart: {arguments.chart}")
    return records


def _run_networks(arguments: argparse.Namespace, names: list[str], device: Any, facts: dict[str, Any]) -> list[Any]:
    from dataclasses import asdict

    from mdepth_fast.bench.network import default_size, engine_speeds, measure_network, network_table
    from mdepth_fast.bench.published import PUBLISHED
    from mdepth_fast.bench.report import as_record, device_text, write_record
    from mdepth_fast.cli._common import progress
    from mdepth_fast.engines import DTYPES, fastest
    from mdepth_fast.engines.runtimes import machine_kind
    from mdepth_fast.inference.export import settle
    from mdepth_fast.models import create_model, list_models

    if arguments.variants:
        raise ValueError(f"--variants: expected ops and losses alone with it, got the network {names[0]!r}")
    sides = arguments.size.split("x") if arguments.size else ()
    if sides and (len(sides) != 2 or not all(side.isdigit() and int(side) > 0 for side in sides)):
        raise ValueError(f"--size: expected height x width like 192x640 for a network, got {arguments.size!r}")
    records = []
    for name in names:
        if name in list_models():
            net = create_model(name).requires_grad_(False)
        else:
            from mdepth_fast.inference import load_trained

            net = load_trained(name).net
        model = net.created_as[0] if net.created_as else type(net).__name__
        published = PUBLISHED.get(model, ())
        height, width = map(int, sides) if sides else default_size(net, published[0].size if published else None)
        if name in list_models() and not getattr(net, "reads_features", False):
            try:
                settle(net, (height, width))  # or rounding would grow from layer to layer
            except ValueError as error:
                raise ValueError(f"size: {type(net).__name__} does not take {height}x{width}: {error}") from error
        parameters = sum(value.numel() for value in net.parameters())
        with progress(name) as track:
            rows = measure_network(net, (height, width), device=device, rounds=arguments.rounds, track=track)
        size = f"{height}x{width}"
        title = f"{name}  {size}, {parameters / 1e6:.4g} M parameters, on {device_text(facts)}, {machine_kind()}"
        print(network_table(title, rows, published), end="\n\n", flush=True)
        papers = [asdict(one) for one in published]
        content = {"parameters": parameters, "rows": rows, "published": papers, **_machine()}
        records.append(as_record(model, size, facts, **content))
        if arguments.save:
            print(f"result file: {write_record(arguments.save, f'network_{model}', size, facts, **content)}")
        for dtype in DTYPES if arguments.save_fastest else ():
            if speeds := engine_speeds(rows, dtype):
                fastest.record(machine_kind(), model, dtype, speeds)
                print(f"{fastest.TABLE}: {machine_kind()}, {model}, {dtype}")
    return records


def _run_step(arguments: argparse.Namespace, device: Any, facts: dict[str, Any]) -> Any:
    from mdepth_fast.bench.report import as_record, device_text, write_record
    from mdepth_fast.bench.step import SIZE, measure_step, step_table
    from mdepth_fast.cli._common import progress
    from mdepth_fast.engines.runtimes import machine_kind

    sides = arguments.size.split("x") if arguments.size else SIZE
    if len(sides) != 3 or not all(str(side).isdigit() and int(side) > 0 for side in sides):
        raise ValueError(f"--size: expected batch x height x width like 2x192x640 for step, got {arguments.size!r}")
    batch, height, width = map(int, sides)
    if height % 32 or width % 32:
        raise ValueError(f"--size: expected height and width multiples of 32 for step, got {arguments.size!r}")
    with progress(_STEP) as track:
        rows = measure_step((batch, height, width), device=device, rounds=arguments.rounds, track=track)
    size = f"{batch}x{height}x{width}"
    title = f"training step  {size}, ms, Monodepth2, ResNet-18, on {device_text(facts)}, {machine_kind()}"
    print(step_table(title, rows), end="\n\n", flush=True)
    content = {"rows": rows, **_machine()}
    if arguments.save:
        print(f"result file: {write_record(arguments.save, 'step', size, facts, **content)}")
    return as_record(_STEP, size, facts, **content)


def _machine() -> dict[str, Any]:
    """What a comparison of runtimes depends on, beyond what every result file says."""
    from mdepth_fast.engines.runtimes import machine_kind, versions

    return {"machine": machine_kind(), "engines": versions()}


def _run_loader(words: list[str]) -> None:
    """Prints images per second of a preset's loader, decoding and cached, and the share of a step spent waiting."""
    parser = argparse.ArgumentParser(prog="mdepth-fast bench --loader", allow_abbrev=False)
    parser.usage = (
        "mdepth-fast bench --loader PRESET [--batches N] [--steps N] [--cache FOLDER] [--SECTION.SETTING VALUE ...]"
    )
    parser.description = (
        "Time a preset's data loader, decoding files and reading from a cache, and the training steps that wait for it."
    )
    parser.add_argument("preset", help="a preset or a .yaml file")
    parser.add_argument("--batches", type=int, default=50, help="batches to time (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="training steps to time (default: %(default)s), or 0")
    parser.add_argument("--cache", type=Path, help="folder for the cache (default: a temporary folder)")
    parser.add_argument("--cache-size", metavar="HxW", help="size of the cached samples (default: the files' size)")
    options, overrides = parser.parse_known_args(words)
    for name, least in (("batches", 1), ("steps", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name}: expected at least {least}, got {getattr(options, name)}")
    size = None
    if options.cache_size:
        sides = options.cache_size.split("x")
        if len(sides) != 2 or not all(side.isdigit() for side in sides):
            raise ValueError(f"--cache-size: expected height x width like 240x320, got {options.cache_size!r}")
        size = int(sides[0]), int(sides[1])

    from tempfile import TemporaryDirectory

    from mdepth_fast.data import Cached
    from mdepth_fast.systems import load_config, system_of
    from mdepth_fast.training.loader import build_loader
    from mdepth_fast.training.throughput import measure_loader, measure_training

    config = load_config(options.preset, overrides)
    dataset: Any = system_of(config).training_data(config)
    batch, workers = config.data.batch_size, config.data.workers
    print(f"loader of {config.run}: {len(dataset)} samples, batches of {batch}, {workers} workers", flush=True)
    with TemporaryDirectory(prefix="mdepth-cache-") as temporary:
        cached = dataset if isinstance(dataset, Cached) else None
        ways = [("decoding", cached.dataset if cached else dataset)]
        if hasattr(dataset, "names"):
            if cached is None or options.cache or size:
                cached = Cached(ways[0][1], options.cache or Path(temporary) / "cache", size)
            if cached.ready < len(cached):
                ways.append(("storing", cached))
            ways.append(("cached", cached))
        elif options.cache or size:
            raise ValueError(f"--cache: expected a preset with measured depth, got {options.preset!r}")
        for title, samples in ways:
            speed = measure_loader(build_loader(config, samples), options.batches)
            rate, each = speed.images_per_second, 1e3 * speed.seconds_per_batch
            print(
                f"  {title:<10}{rate:10.1f} images/s{each:10.1f} ms a batch, first after {speed.first:.1f} s",
                flush=True,
            )
        for title, samples in dict([ways[0], ways[-1]]).items() if options.steps else ():
            speed = measure_training(config, samples, options.steps)
            each = 1e3 * speed.seconds_per_batch
            print(f"  training, {title:<10}{each:10.1f} ms a step, {speed.waiting_share:.1%} of it waiting", flush=True)
