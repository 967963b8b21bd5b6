"""`mdepth-fast netadapt`."""

import argparse
from pathlib import Path

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Shrink a network to a share of its cost (NetAdapt, ECCV 2018). Every iteration removes channels from the "
        "layer that loses the least accuracy. The cost is latency on this machine, multiply-accumulates or weights."
    )
    parser.usage = (
        "mdepth-fast netadapt MODEL [--budget SHARE] [--cost WHAT] [--data PRESET] [--SECTION.SETTING VALUE ...]"
    )
    parser.epilog = (
        "Start from a trained network: `mdepth-fast netadapt fastdepth --model.weights runs/fastdepth_nyu/001 "
        "--data.root nyu`. Without weights it starts from random ones, which says little about the layers."
    )
    parser.add_argument("model", help="name of a registered depth network, such as fastdepth")
    parser.add_argument(
        "--data", metavar="PRESET", help="preset or .yaml file (default: the first one for this network)"
    )
    parser.add_argument("--budget", type=float, default=0.5, help="share of the initial cost (default: %(default)s)")
    parser.add_argument(
        "--cost",
        choices=("latency", "macs", "weights"),
        default="latency",
        help="what to reduce (default: %(default)s)",
    )
    parser.add_argument(
        "--reduction", type=float, default=0.025, help="share of the cost to remove first (default: %(default)s)"
    )
    parser.add_argument(
        "--decay", type=float, default=0.96, help="factor on the reduction per iteration (default: %(default)s)"
    )
    parser.add_argument(
        "--multiple", type=int, default=8, help="keep channel counts multiples of this (default: %(default)s)"
    )
    parser.add_argument(
        "--criterion",
        choices=("score", "ratio"),
        default="score",
        help="best score, or least drop in score per saving (default: %(default)s)",
    )
    parser.add_argument(
        "--holdout", type=int, default=64, help="training samples held out for scoring (default: %(default)s)"
    )
    parser.add_argument(
        "--short-steps", type=int, default=500, help="optimiser steps per candidate (default: %(default)s)"
    )
    parser.add_argument("--long-steps", type=int, default=0, help="optimiser steps at the end (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="batch size for measuring latency (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder for the run (default: runs/netadapt_MODEL)")
    parser.add_argument("--resume", action="store_true", help="continue after the last iteration in the folder")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: %(default)s)")
    parser.add_argument("-h", "--help", action="help", help="show this help")


def run(arguments: argparse.Namespace) -> None:
    from dataclasses import fields

    from mdepth_fast.cli._common import pick_device
    from mdepth_fast.models import list_models
    from mdepth_fast.netadapt.run import AdaptSettings, adapt
    from mdepth_fast.systems import list_presets, load_config
    from mdepth_fast.systems.supervised import SupervisedConfig

    model = arguments.model
    preset = arguments.data
    if preset is None:
        configs = {name: load_config(name) for name in list_presets()} if model in list_models() else {}
        fitting = [name for name, config in configs.items() if config.model.name == model]
        if not fitting:
            raise ValueError(f"--data: no preset trains {model!r}; expected a preset or .yaml file with measured depth")
        preset = fitting[0]
    config = load_config(preset, [f"--model.name={model}", *arguments.overrides])
    if not isinstance(config, SupervisedConfig):
        raise ValueError(f"--data: expected a preset with measured depth, got {preset!r}")
    settings = AdaptSettings(**{entry.name: getattr(arguments, entry.name) for entry in fields(AdaptSettings)})
    folder = arguments.output or Path(config.output) / f"netadapt_{model}"
    done = adapt(
        config,
        settings,
        folder,
        resume=arguments.resume,
        device=pick_device(arguments.device),
        say=lambda line: print(line, flush=True),
    )
    result = done.adapted
    unit = {"latency": "s", "macs": "multiply-accumulates", "weights": "weights"}[settings.cost]
    print(
        f"{settings.cost}: {result.initial:.4g} -> {result.final:.4g} {unit}, "
        f"{result.final / result.initial:.3f} of the initial, in {len(result.steps)} iterations"
    )
    if done.measured:
        before, after = done.measured
        share, said = after / before, result.final / result.initial
        print(
            f"measured: {1e3 * before:.2f} -> {1e3 * after:.2f} ms, {share:.3f}; the table said "
            f"{1e3 * result.final:.2f} ms ({100 * (result.final / after - 1):+.1f} %), {said:.3f} "
            f"({100 * (said / share - 1):+.1f} %)"
        )
    print("hold-out: " + ", ".join(f"{key} {done.metrics[key]:.3f}" for key in ("abs_rel", "rmse", "d1")))
    print(f"weights: {done.weights}")
