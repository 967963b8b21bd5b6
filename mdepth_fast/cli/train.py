"""`mdepth-fast train`."""

import argparse
import time
from pathlib import Path

TAKES_OVERRIDES = True


class _Help(argparse.Action):
    """Help that ends with the list of presets, or with the needs and settings (type, value) of the given preset."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: object) -> None:
        parser.print_help()
        preset = getattr(namespace, "preset", None)
        if preset is None:
            for system, presets in _packaged_presets().items():
                print(f"\npresets of {system}:")
                for name, about in sorted(presets.items()):
                    print(f"  {name:27}{about}")
        else:
            from mdepth_fast.systems import config_parser, list_presets, preset_notes

            if preset in list_presets():
                print("", *preset_notes(preset), sep="\n")
            print(f"\nsettings of {preset} (type, value):\n")
            print(config_parser(preset).format_help().partition("\n\n")[2].partition("\n\n")[2])
        parser.exit()


def _packaged_presets() -> dict[str, dict[str, str]]:
    """The presets of this package by system, each with the first line of its notes.

    They are read as text: importing the systems takes torch, and seconds.
    """
    found: dict[str, dict[str, str]] = {}
    for path in sorted((Path(__file__).parents[1] / "configs").glob("*.yaml")):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        (system,) = [line.removeprefix("system: ") for line in lines if line.startswith("system: ")]
        found.setdefault(system, {})[path.stem] = lines[0].removeprefix("# ")
    return dict(sorted(found.items()))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Train a network. If there is ground truth, evaluate before and after."
    parser.usage = "mdepth-fast train PRESET [--resume WHERE [--allow-changed KEYS]] [--SECTION.SETTING VALUE ...]"
    parser.epilog = (
        "You can change every setting: `mdepth-fast train motorcycle --optimizer.lr 1e-3 --trainer.max_epochs 5`; "
        "`mdepth-fast train PRESET --help` lists them and says what data the preset needs."
    )
    parser.add_argument("preset", help="a preset (`mdepth-fast train --help` lists them) or a .yaml file")
    parser.add_argument(
        "--resume",
        metavar="WHERE",
        help="a checkpoint, a run folder, or auto: the newest run of this preset, or a new one if there is none",
    )
    parser.add_argument(
        "--allow-changed",
        metavar="KEYS",
        default="",
        help="with --resume: settings or sections that may differ from those of the run, such as optimizer.lr,augment",
    )
    parser.add_argument(
        "-h", "--help", action=_Help, nargs=0, help="show this help and the settings of PRESET, if given"
    )


def run(arguments: argparse.Namespace) -> None:
    from mdepth_fast.systems import load_config

    config = load_config(arguments.preset, arguments.overrides)
    from mdepth_fast.training.run import train

    started = time.perf_counter()
    allowed = [key for key in arguments.allow_changed.split(",") if key]
    if allowed and not arguments.resume:
        raise ValueError("--allow-changed: goes with --resume")
    result = train(config, resume=arguments.resume, allow_changed=allowed, say=lambda line: print(line, flush=True))
    if result is None:
        return
    print(f"finished in {time.perf_counter() - started:.0f} s")
    if result.skipped:
        print(f"skipped {len(result.skipped)} samples that could not be read")
    print(result.table())
    print(result.checkpoints())
    print(f"panel: {result.panel}")
