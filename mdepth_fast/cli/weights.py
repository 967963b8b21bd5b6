"""`mdepth-fast weights VERB`: published weights by name."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Published weights by name: list them, show what is known of them, download them. A download is resumed, "
        "checked, and kept in MDEPTH_CACHE (default: ~/.cache/mdepth_fast). The licences are those of the authors."
    )
    verbs = parser.add_subparsers(metavar="verb", dest="verb", required=True)
    listing = verbs.add_parser("list", help="list the weights, their models and licences", allow_abbrev=False)
    listing.add_argument("pattern", nargs="?", default="*", help='names, such as "dpt*" (default: all)')
    listing.set_defaults(verb=_list)
    show = verbs.add_parser("show", help="show what is known of one entry", allow_abbrev=False)
    show.add_argument("name", help="name in the list")
    show.set_defaults(verb=_show)
    get = verbs.add_parser("get", help="download weights, and print where they are", allow_abbrev=False)
    get.add_argument("name", help="name in the list")
    add_licence(get)
    get.add_argument(
        "--offline", action="store_true", help="take the cache alone, as MDEPTH_OFFLINE=1 does for every command"
    )
    get.set_defaults(verb=_get)


def add_licence(parser: argparse.ArgumentParser) -> None:
    """`--accept-licence`, for commands that may download weights."""
    parser.add_argument(
        "--accept-licence",
        metavar="LICENCE",
        help="the licence of published weights, by its name, where it does not allow any use; remembered in the cache",
    )


def run(arguments: argparse.Namespace) -> None:
    arguments.verb(arguments)


def _list(arguments: argparse.Namespace) -> None:
    from mdepth_fast.weights.registry import cached, published

    entries = published(arguments.pattern)
    if not entries:
        raise ValueError(f"pattern: no weights are called {arguments.pattern!r}")
    rows = [("name", "model", "licence", "here")]
    rows += [(entry.name, entry.model, entry.licence, "yes" if cached(entry) else "") for entry in entries]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())
    print("\nmdepth-fast weights show NAME: data, accuracy, address. mdepth-fast predict NAME IMAGES: depth.")


def _show(arguments: argparse.Namespace) -> None:
    from mdepth_fast.weights.registry import cached, find

    entry = find(arguments.name)
    options = "".join(f", {key}={value!r}" for key, value in entry.options.items())
    size = entry.size if entry.size is None or isinstance(entry.size, str) else f"{entry.size} bytes"
    checksums = ", ".join(f"{name} {value}" for name, value in (entry.checksums or {}).items())
    lines = {
        "model": f'{entry.model}{options}; create_model("{entry.model}", weights="{entry.label}")',
        "file": entry.file,
        "address": entry.source or f"none for a program; {entry.page}",
        "page": entry.page,
        "size": size or "not stated",
        "checksum": checksums or "none is published; the first download is pinned",
        "licence": entry.licence + ("" if entry.free else "; must be accepted by this name"),
        "trained on": entry.data,
        "note": entry.note,
        "here": str(cached(entry) or "no"),
    }
    print(entry.name)
    for key, text in lines.items():
        if text:
            print(f"  {key:10}  {text}")
    for result in entry.results:
        values = ", ".join(f"{name} {value:g}" for name, value in result.values.items())
        print(f"  {'accuracy':10}  {values} ({_KNOWN[result.known]})\n  {'':10}  {result.protocol}")
    if not entry.results:
        print(f"  {'accuracy':10}  none is stated")


_KNOWN = {
    "read": "as its authors publish",
    "quoted": "as quoted by others",
    "recalled": "not verified",
}


def _get(arguments: argparse.Namespace) -> None:
    from mdepth_fast.weights.registry import fetch

    with download_bar(arguments.name) as progress:
        path = fetch(
            arguments.name,
            accept_licence=arguments.accept_licence,
            offline=True if arguments.offline else None,
            progress=progress,
        )
    print(path)


@contextmanager
def download_bar(title: str) -> Iterator[Callable[[int, int | None], Any] | None]:
    """What `fetch` calls to show its progress on stderr; None without a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress("{task.description}", *columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)
