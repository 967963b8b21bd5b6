"""`mdepth-fast train`."""

import argparse
import time

TAKES_OVERRIDES = True


class _Help(argparse.Action):
    """Help that ends with the presets, and with every setting of the one given, its type and value."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: object) -> None:
        from mdepth_fast.training.config import config_parser, list_presets

        parser.print_help()
        for task in ("self_supervised", "supervised"):
            print(f"\n{task.replace('_', '-')} presets: {', '.join(list_presets(task))}")
        if preset := getattr(namespace, "preset", None):
            print(f"\nsettings of {preset} (type, value):\n")
            print(config_parser(preset).format_help().partition("\n\n")[2].partition("\n\n")[2])
        parser.exit()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Train, and evaluate before and after where there is ground truth."
    parser.usage = "mdepth-fast train PRESET [--resume WHERE] [--SECTION.SETTING VALUE ...]"
    parser.epilog = (
        "Every setting can be changed: `mdepth-fast train motorcycle --optimizer.lr 1e-3 --trainer.max_epochs 5`; "
        "`mdepth-fast train PRESET --help` lists them."
    )
    parser.add_argument("preset", help="a preset, see below, or a .yaml file")
    parser.add_argument(
        "--resume", metavar="WHERE", help="a checkpoint, a run folder, or auto: the newest run of this preset"
    )
    parser.add_argument(
        "-h", "--help", action=_Help, nargs=0, help="show this help, and the settings of PRESET if given"
    )


def run(arguments: argparse.Namespace) -> None:
    from mdepth_fast.training.config import load_config

    config = load_config(arguments.preset, arguments.overrides)
    from mdepth_fast.training.run import train

    started = time.perf_counter()
    result = train(config, resume=arguments.resume, say=lambda line: print(line, flush=True))
    if result is None:
        return
    print(f"finished in {time.perf_counter() - started:.0f} s")
    if result.skipped:
        print(f"skipped {len(result.skipped)} samples that could not be read")
    print(result.table())
    print(f"checkpoint: {result.checkpoint}")
    print(f"panel: {result.panel}")
