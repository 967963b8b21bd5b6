"""The command `mdepth-fast`.

Each subcommand is a module of this package, imported when it is called. It has `add_arguments(parser)` and
`run(arguments)`. Importing it must need no more than torch and numpy: `run` imports everything else.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

__all__ = ["main"]

_COMMANDS = {
    "train": "train a preset or your own configuration",
    "eval": "evaluate a checkpoint against ground truth, under a stated protocol",
    "predict": "write depth maps, or optical flow, for images or video frames",
    "demo": "try networks on your own pictures, on a page in the browser",
    "view": "write images, depth, points and trajectory as a recording for the Rerun viewer",
    "odometry": "predict and evaluate the trajectory of the camera",
    "data": "prepare and check data: frames from a video, ground truth of KITTI's splits",
    "convert": "convert published weights of any format to safetensors",
    "export": "write a network for ONNX Runtime, torch.export or AOTInductor, checked against PyTorch",
    "netadapt": "shrink a network to a budget of latency, operations or weights",
    "probe": "show what a depth network sees: position, size, pitch, roll, shadows, colours",
    "bench": "time the kernels against plain PyTorch on this machine",
    "info": "show versions and backends, with the reason for each missing backend",
}
_EXTRAS = {"lightning", "jsonargparse", "tensorboard", "rich", "PIL", "skimage", "matplotlib", "yaml", "safetensors"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand and returns the exit code: 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C (training:
    also 143 for SIGTERM, 129 for SIGHUP), or 3 for work that is done but for a part of the input that could not be
    read.

    An error is one line on stderr; `--debug`, before or after the subcommand, shows the traceback instead.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        if not words or words[0] not in _COMMANDS:
            _overview().parse_args(words)
            return 2  # not reached: an unknown command has ended in argparse's own message
        command = importlib.import_module(f"mdepth_fast.cli.{words[0]}")
        # A command with overrides gets every option that it does not know as `overrides`, and prints its own help.
        overrides = getattr(command, "TAKES_OVERRIDES", False)
        parser = argparse.ArgumentParser(prog=f"mdepth-fast {words[0]}", allow_abbrev=False, add_help=not overrides)
        command.add_arguments(parser)
        parsed, rest = parser.parse_known_args(words[1:])
        if rest and not overrides:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        parsed.overrides = rest
        code: int | None = command.run(parsed)
        sys.stdout.flush()
        return code or 0
    except KeyboardInterrupt as stop:
        if debug:
            raise
        try:
            print(f"mdepth-fast: {' '.join(str(stop).split()) or 'interrupted'}", file=sys.stderr, flush=True)
            sys.stdout.flush()
        except OSError:  # after SIGHUP the terminal is gone
            for stream in (sys.stdout, sys.stderr):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 128 + getattr(stop, "number", 2)  # as a shell counts it: 130 for Ctrl-C
    except BrokenPipeError:
        # The reader of our output has gone (`mdepth-fast info | head -1`): no error, and nothing left to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        for line in getattr(error, "lines", [_describe(error)]):  # several faults have one each
            print(f"mdepth-fast: error: {line}", file=sys.stderr)
        return 1


def _overview() -> argparse.ArgumentParser:
    from mdepth_fast import __version__

    parser = argparse.ArgumentParser(
        prog="mdepth-fast", description="Monocular depth estimation in PyTorch with fused kernels.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"mdepth-fast {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback if an error occurs")
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, text in _COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser


def _describe(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == "av":
        return 'av, which reads videos, is not installed: pip install "mdepth-fast[video]"'
    if isinstance(error, ModuleNotFoundError) and error.name in ("onnx", "onnxscript", "onnxruntime"):
        return f'{error.name} is not installed: pip install "mdepth-fast[export]"'
    if isinstance(error, ModuleNotFoundError) and error.name == "gradio":
        return 'gradio, which shows the page, is not installed: pip install "mdepth-fast[demo]"'
    if isinstance(error, ModuleNotFoundError) and error.name == "rerun":
        return 'rerun, which writes the recording, is not installed: pip install "mdepth-fast[view]"'
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in _EXTRAS:
        return f'{error.name} is not installed: pip install "mdepth-fast[train]"'
    text = " ".join(str(error).split())
    # The package's own errors speak for themselves; others need their kind (`KeyError: 'x'`).
    return (
        text
        if text and isinstance(error, ValueError | TypeError | OSError | ImportError)
        else (f"{type(error).__name__}: {text}" if text else type(error).__name__)
    )
