"""Helpers that several subcommands share."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["counter", "pick_device", "progress"]


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU if there is one."""
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
