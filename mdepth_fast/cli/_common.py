"""Arguments and helpers that several subcommands share. Importing it imports no torch: `--help` needs none."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["add_checkpoint", "camera", "count", "counter", "pick_device", "progress", "report_left_out", "size"]


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """`--checkpoint`, for commands that read a run folder."""
    parser.add_argument(
        "--checkpoint",
        choices=("last", "best"),
        help="checkpoint to use from a run folder (default: last; see trainer.monitor)",
    )


def size(text: str) -> tuple[int, int]:
    """(height, width) of an argument such as 192x640."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH such as 192x640, got {text!r}")
    return int(height), int(width)


def count(text: str) -> int:
    """A positive whole number."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return int(text)


def camera(text: str | None) -> Any:
    """The camera matrix (3, 3) of `--K`: four numbers, or a file."""
    from mdepth_fast.data.frames import read_intrinsics

    if text is None:
        return None
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        return read_intrinsics(Path(text))
    if len(numbers) != 4:
        raise ValueError(f"--K: expected fx,fy,cx,cy or a file of a 3x3 matrix, got {text!r}")
    return read_intrinsics(numbers)


def report_left_out(done: Any) -> None:
    """Says on stderr what a run notes, and which frames it has left out (`done.notes`, `done.skipped`)."""
    for note in done.notes:
        print(f"mdepth-fast: warning: {note}", file=sys.stderr)
    if done.skipped:
        reasons = "; ".join(item.reason for item in done.skipped[:5])
        more = f"; and {len(done.skipped) - 5} more" if len(done.skipped) > 5 else ""
        print(f"mdepth-fast: warning: {len(done.skipped)} left out: {reasons}{more}", file=sys.stderr)


def pick_device(name: str) -> "torch.device":
    """The device of that name; "auto" is the GPU if there is one."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: cannot use {name!r}: {str(error).splitlines()[0]}") from error
    return device


@contextmanager
def progress(title: str) -> Iterator[Callable[[Iterable[Any]], Iterable[Any]]]:
    """A function that wraps a sized iterable in a progress bar; without a terminal there is no bar."""
    if not sys.stdout.isatty():
        yield lambda items: items
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        yield lambda items: bar.track(items, description=title)


@contextmanager
def counter(title: str, total: int | None, *, quiet: bool = False) -> Iterator[Callable[[int], Any]]:
    """A function that moves a bar of `total` frames on, with frames per second; no bar without a terminal."""
    if quiet or not sys.stdout.isatty():
        yield lambda count: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:.1f} frames/s", style="progress.data.speed")

    with Progress("{task.description}", BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn()) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)
