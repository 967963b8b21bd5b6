"""Compares networks, losses and metrics with the original repositories of their systems, and writes docs/fidelity.md.

python benches/parity.py FOLDER [peer ...] [--revision PEER=COMMIT] [--output FILE]

FOLDER holds clones of the repositories, under their own names. Each runs in a process of its own, with random weights
and inputs in float64: `benches/parity_peers.py` has one function per peer, which calls its code and ours. The exit
status is 1 if a difference is above the bound and not stated there, if a comparison fails, or if nothing was equal.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

import mdepth_fast
from mdepth_fast.files import replacing

FIDELITY = Path(__file__).parents[1] / "docs" / "fidelity.md"
BOUND = 1e-6  # of the largest relative difference
EQUAL, DIFFERS, KNOWN, FAILED, NOT_COMPARED = "equal", "differs", "differs as meant", "failed", "not compared"


class Tensors(NamedTuple):
    """What is compared: values, and gradients of a random combination of them."""

    values: Sequence[Tensor]
    gradients: Sequence[Tensor] = ()


class Comparison(NamedTuple):
    what: str
    theirs: Callable[[], Tensors]
    ours: Callable[[], Tensors]
    known: str = ""  # why they differ, where that is meant


class CannotImport(Exception):
    """Why a peer's module, or something in it, cannot be used here."""


def relative_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest of max |ours - theirs| / max |theirs| over pairs of tensors; NaN if a number is not finite.

    ValueError if numbers or shapes differ, or if all of theirs are 0, which any network without signal would equal.
    """
    shapes = [[tuple(one.shape) for one in tensors] for tensors in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"shapes: ours {shapes[0]}, theirs {shapes[1]}")
    largest, signal = 0.0, False
    for own, other in zip(ours, theirs):
        own, other = own.detach().double(), other.detach().double()
        if not (own.isfinite().all() and other.isfinite().all()):
            return math.nan
        size, error = other.abs().max().item(), (own - other).abs().max().item()
        signal = signal or size > 0
        largest = max(largest, error / size if size else math.inf if error else 0.0)
    if not signal:
        raise ValueError("the peer's tensors are all 0")
    return largest


@contextmanager
def their_day() -> Iterator[None]:
    """PyTorch as the peers knew it: `grid_sample` aligns corners unless told otherwise, and `.cuda()` stays here."""
    sample = F.grid_sample

    def aligned(*args: Any, align_corners: bool = True, **options: Any) -> Tensor:
        return sample(*args, align_corners=align_corners, **options)

    with mock.patch.object(F, "grid_sample", aligned), mock.patch.object(Tensor, "cuda", lambda self: self):
        yield


def compare(comparison: Comparison) -> dict[str, Any]:
    """The row of one comparison."""
    row: dict[str, Any] = {"what": comparison.what, "values": None, "gradients": None, "reason": ""}
    try:
        with their_day():
            theirs = comparison.theirs()
    except CannotImport as error:
        return row | {"verdict": NOT_COMPARED, "reason": str(error)}
    ours = comparison.ours()
    row["values"] = relative_difference(ours.values, theirs.values)
    if theirs.gradients or ours.gradients:
        row["gradients"] = relative_difference(ours.gradients, theirs.gradients)
    found = [row[key] for key in ("values", "gradients") if row[key] is not None]
    if all(one <= BOUND for one in found):  # not where NaN
        return row | {"verdict": EQUAL}
    meant = comparison.known and all(math.isfinite(one) for one in found)
    return row | ({"verdict": KNOWN, "reason": comparison.known} if meant else {"verdict": DIFFERS})


def run_here(name: str, folder: Path) -> dict[str, Any]:
    """All rows of a peer, in this process."""
    from parity_peers import PEERS, Peer

    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    peer, rows = Peer(folder), []
    try:
        for comparison in PEERS[name].adapter(peer):
            try:
                rows.append(compare(comparison))
            except Exception as error:
                traceback.print_exc()
                rows.append(_row(comparison.what, FAILED, f"{type(error).__name__}: {error}"))
            print(
                f"{name}: {rows[-1]['what']}: {rows[-1]['verdict']} {rows[-1]['values']}", file=sys.stderr, flush=True
            )
    except CannotImport as error:
        rows.append(_row("the rest" if rows else "", NOT_COMPARED, str(error)))
    except Exception as error:
        traceback.print_exc()
        rows.append(_row("the rest" if rows else "", FAILED, f"{type(error).__name__}: {error}"))
    return {"rows": rows, "stand_ins": sorted(peer.stand_ins)}


def run(name: str, folder: Path) -> dict[str, Any]:
    """All rows of a peer, from a process of its own: peers have modules of the same names."""
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "rows.json"
        command = [sys.executable, __file__, str(folder), name, "--rows", str(file)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        if not file.is_file():
            return {"rows": [_row("", FAILED, f"its process ended with status {done.returncode}")], "stand_ins": []}
        found: dict[str, Any] = json.loads(file.read_text())
        return found


def _row(what: str, verdict: str, reason: str) -> dict[str, Any]:
    return {"what": what, "values": None, "gradients": None, "verdict": verdict, "reason": reason}


def revision(folder: Path) -> str:
    """The commit of a clone; "" if it is none, or its subfolder."""
    root = next((one for one in (folder, *folder.parents[:2]) if (one / ".git").exists()), None)
    if root is None:
        return ""
    git = ["git", "-C", str(root)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
    return f"commit {head.stdout.strip()}" + (" with changes" if changed.stdout.strip() else "")


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """docs/fidelity.md: for each peer its rows, and the terms on which they were compared."""
    from parity_peers import PEERS

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.0e}"

    versions = f"mdepth_fast {mdepth_fast.__version__}, PyTorch {torch.__version__.partition('+')[0]}"
    lines = [
        "# Fidelity",
        "",
        "Networks, losses and metrics against the original repositories, with random weights and inputs in float64.",
        "`make parity PEERS=folder` writes this page; the folder holds the sources of the repositories.",
        "",
        "Each figure is the largest relative difference: the largest absolute difference of two tensors over the",
        "largest absolute value of the peer's, the largest over all tensors. Gradients are those of a random",
        "combination of the outputs, for inputs and parameters. Parameters are translated by the code that reads",
        f"published weights. The verdict is `{EQUAL}` up to {BOUND:g}. Where we differ on purpose, it says why.",
        "",
        f"{versions}. The peers run as in the PyTorch of their time:",
        "`grid_sample` aligns corners where they do not say. `benches/parity_stand_ins.py` takes the place of",
        "TensorFlow, whose layers it runs on PyTorch, and of packages that are missing or not needed.",
        "",
        "| peer | what | values | gradients | verdict |",
        "|---|---|---|---|---|",
    ]
    for name, result in results.items():
        for row in result["rows"]:
            reason = row["reason"].replace("|", "/").replace("\n", " ")
            verdict = f"{row['verdict']}: {reason}" if reason else row["verdict"]
            lines.append(
                f"| {name} | {row['what']} | {number(row['values'])} | {number(row['gradients'])} | {verdict} |"
            )
    lines += ["", "## Terms", ""]
    for name, result in results.items():
        if all(row["verdict"] == NOT_COMPARED for row in result["rows"]):
            continue
        lines.append(
            f"**{name}**" + (f", {result['revision']}" if result["revision"] else "") + f": {PEERS[name].terms}"
        )
        if result["stand_ins"]:
            lines.append(f"Stand-ins took the place of {', '.join(result['stand_ins'])}.")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    from parity_peers import PEERS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="holds the clones, each under the name of its repository")
    parser.add_argument("peers", nargs="*", metavar="peer", help=f"out of {', '.join(PEERS)}; default: all")
    parser.add_argument(
        "--revision", action="append", default=[], metavar="PEER=COMMIT", help="of a folder without git"
    )
    parser.add_argument("--output", type=Path, default=FIDELITY)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        parser.error(f"folder: expected a folder with clones, got {options.folder}")
    given = dict(one.partition("=")[::2] for one in options.revision)
    for name in [*options.peers, *given]:
        if name not in PEERS:
            parser.error(f"peer: expected one of {', '.join(PEERS)}, got {name!r}")
    if options.rows:
        with replacing(options.rows) as temporary:
            temporary.write_text(json.dumps(run_here(options.peers[0], options.folder.resolve())))
        return 0
    results = {}
    for name in options.peers or PEERS:
        peer, folder = PEERS[name], options.folder / PEERS[name].folder
        commit = f"{given[name]}, as stated" if name in given else revision(folder)
        results[name] = {"revision": commit, "stand_ins": []}
        if peer.adapter is None:
            results[name]["rows"] = [_row("", NOT_COMPARED, peer.terms)]
        elif not folder.is_dir():
            results[name]["rows"] = [_row("", NOT_COMPARED, "not in the folder")]
        else:
            results[name] |= run(name, folder)
    with replacing(options.output) as temporary:
        temporary.write_text(markdown(results), encoding="utf-8")
    verdicts = [row["verdict"] for result in results.values() for row in result["rows"]]
    print(f"{options.output}: " + ", ".join(f"{verdicts.count(one)} {one}" for one in dict.fromkeys(verdicts)))
    return int(DIFFERS in verdicts or FAILED in verdicts or EQUAL not in verdicts)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    # The peers' side imports this module by its name, not as __main__.
    sys.modules["parity"] = sys.modules["__main__"]
    sys.exit(main())
