"""Published weights by name: where they are, under which licence, and what is known of them.

`published.yaml` lists them. A file is downloaded once, into `MDEPTH_CACHE` or ~/.cache/mdepth_fast, a folder for each
name. Nothing here knows a model: an entry holds the name of one.
"""

import difflib
import fnmatch
import functools
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdepth_fast.files import cache_folder, replacing
from mdepth_fast.weights.converted import write_converted
from mdepth_fast.weights.download import Checksum, Progress, check_file, digest, download, unpack
from mdepth_fast.weights.hub import is_on_hub, local_file
from mdepth_fast.weights.read import read_pickled_module

__all__ = [
    "FREE",
    "Entry",
    "Result",
    "cached",
    "fetch",
    "find",
    "find_for",
    "is_published",
    "published",
]

FREE = frozenset({"apache-2.0", "bsd-2-clause", "mit"})
"""Licences that need not be accepted by name: they allow any use."""


@dataclass(frozen=True)
class Result:
    """Published accuracy.

    protocol: data, cap, crop and alignment. values: by metric. known: "read" in the authors' publication, "quoted" by
    others, or "recalled", which nobody has verified here.
    """

    protocol: str
    values: Mapping[str, float]
    known: str


@dataclass(frozen=True)
class Entry:
    """Published weights of one network.

    Attributes:
        name: unique. label: short name among the weights of one model, such as "nyu".
        model, options: what `create_model` makes for them.
        source: address of the file, `hub:...` for one on the Hugging Face Hub; None where it cannot be fetched by a
            program. page: where a person finds it.
        file: name of the file. size: in bytes, or in words where nobody has said it exactly, or None.
        checksums: by algorithm; of SHA-256 perhaps the first digits only. Empty: the first download is pinned.
        archive: what a packed file holds, as a pattern; the folder of encoder.pth counts as a whole.
        pickled: a whole pickled module, read in a process of its own.
        licence: SPDX identifier or the like. data: what the network was trained on. results: published accuracy.
        note: what else one must know.
    """

    name: str
    label: str
    model: str
    file: str
    licence: str
    data: str
    page: str
    options: Mapping[str, Any]
    source: str | None = None
    size: int | str | None = None
    checksums: Mapping[str, str] | None = None
    archive: str | None = None
    pickled: bool = False
    results: tuple[Result, ...] = ()
    note: str = ""

    @property
    def free(self) -> bool:
        """Whether the licence needs no acceptance."""
        return self.licence in FREE


@functools.cache
def _entries() -> dict[str, Entry]:
    import yaml

    content = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
    made = {}
    for name, values in content["weights"].items():
        options = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.pop("options", {}).items()
        }
        results = tuple(Result(**result) for result in values.pop("results", ()))
        made[name] = Entry(name=name, options=options, results=results, **values)
    return made


def published(pattern: str = "*") -> list[Entry]:
    """Entries whose name matches a shell pattern, in the order of the list."""
    return [entry for name, entry in _entries().items() if fnmatch.fnmatch(name, pattern)]


def find(name: str) -> Entry:
    """The entry of that name. ValueError that lists the nearest names if there is none."""
    if name not in _entries():
        near = difflib.get_close_matches(name, _entries(), n=3) or list(_entries())
        raise ValueError(f"weights: none are called {name!r}; did you mean {', '.join(near)}?")
    return _entries()[name]


def find_for(model: str, weights: str) -> Entry:
    """The entry for the registered model that `weights` names, by label or in full. ValueError if there is none."""
    fitting = [entry for entry in _entries().values() if entry.model == model]
    for entry in fitting:
        if weights in (entry.label, entry.name):
            return entry
    if weights in _entries():
        raise ValueError(f"weights: {weights} are for {_entries()[weights].model}, not for {model}")
    known = ", ".join(entry.label for entry in fitting) or "none are published that can be read"
    raise ValueError(f"weights: {weights!r} is neither a file nor the name of weights for {model} ({known})")


def is_published(weights: str | os.PathLike[str]) -> bool:
    """Whether it is the name of an entry, and not of a file or folder."""
    text = os.fspath(weights)
    if os.sep in text or "." in text or is_on_hub(text) or Path(text).exists():
        return False
    try:
        return text in _entries()
    except ModuleNotFoundError:  # no yaml: no names
        return False


def cached(entry: Entry) -> Path | None:
    """The file in the cache, None if it is not there. One on the Hugging Face Hub is there once it has been used."""
    folder = _folder(entry)
    if entry.source and is_on_hub(entry.source):
        if not _record(folder, entry.file).is_file():
            return None
        try:
            return _file(entry, folder, offline=True, progress=None)
        except (FileNotFoundError, ImportError):
            return None
    return folder / entry.file if (folder / entry.file).is_file() else None


def fetch(
    name: str,
    *,
    accept_licence: str | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Path:
    """The file or folder of the weights `name` that `load_checkpoint` reads, downloaded if it is not in the cache.

    Processes that ask at the same time wait for the first one. Size and checksum are compared, with what is published
    or, where nothing is, with the first download. Archives are unpacked; a pickled module is read in a process of its
    own that knows tensors alone, and becomes a .safetensors file.

    Args:
        name: of an entry, see `published`
        accept_licence: the entry's licence, if it does not allow any use; it is remembered in the cache
        offline: take the cache alone; None: as MDEPTH_OFFLINE or HF_HUB_OFFLINE says
        progress: called with the bytes that are there and all bytes

    Raises:
        ValueError: no such name, or a file of another size or checksum.
        PermissionError: a licence that has not been accepted.
        FileNotFoundError: not in the cache, and not to be downloaded.
    """
    entry = find(name)
    folder = _folder(entry)
    if offline is None:
        offline = any(os.environ.get(key, "0").lower() not in ("", "0", "false") for key in _OFFLINE)
    _accept(entry, folder, accept_licence)
    if (ready := _ready(entry, folder)) is not None:
        return ready
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        file = _file(entry, folder, offline, progress)
        _pin(entry, folder, file)
        return _readable(entry, folder, file)


_OFFLINE = ("MDEPTH_OFFLINE", "HF_HUB_OFFLINE")


def _folder(entry: Entry) -> Path:
    return cache_folder() / "weights" / entry.name


def _accept(entry: Entry, folder: Path, accepted: str | None) -> None:
    if entry.free:
        return
    record = folder / "accepted_licence"
    if accepted is not None and accepted.lower() != entry.licence:
        raise PermissionError(f"{entry.name}: accept_licence: expected {entry.licence}, got {accepted}")
    if accepted is None:
        with suppress(OSError):
            accepted = record.read_text(encoding="utf-8").strip()
        if accepted != entry.licence:
            raise PermissionError(
                f"{entry.name}: its licence, {entry.licence}, does not allow any use; read it ({entry.page}) and "
                f"accept it by name: mdepth-fast weights get {entry.name} --accept-licence {entry.licence}, or "
                f'accept_licence="{entry.licence}"'
            )
        return
    if not record.is_file():
        with replacing(record) as temporary:
            temporary.write_text(f"{entry.licence}\n", encoding="utf-8")


def _ready(entry: Entry, folder: Path) -> Path | None:
    """What a call before this one has made, if nothing has changed since; a cache may be read-only."""
    if entry.source and is_on_hub(entry.source):
        return None  # huggingface_hub has a cache of its own
    file = folder / entry.file
    if not _is_pinned(folder, file):
        return None
    made = file
    if entry.archive:
        return _held(entry, folder) if (folder / "files").is_dir() else None
    if entry.pickled:
        made = folder / f"{entry.name}.safetensors"
    return made if made.is_file() else None


def _file(entry: Entry, folder: Path, offline: bool, progress: Progress | None) -> Path:
    """The published file, from the cache or the network."""
    if entry.source and is_on_hub(entry.source):
        options: dict[str, Any] = {"local_files_only": True} if offline else {}
        if os.environ.get("MDEPTH_CACHE"):
            options["cache_dir"] = cache_folder() / "hub"
        return local_file(entry.source, **options)
    file = folder / entry.file
    if file.is_file():
        return file
    by_hand = f"put the file at {file}"
    if entry.source is None:
        raise FileNotFoundError(f"{entry.name}: only a person can fetch it, from {entry.page}; {by_hand}")
    if offline:
        raise FileNotFoundError(f"{entry.name}: not in the cache, and offline; {by_hand}")
    size = entry.size if isinstance(entry.size, int) else None
    try:
        download(entry.source, file, checksums=_checksums(entry, folder), size=size, progress=progress)
    except ConnectionError as error:
        raise FileNotFoundError(
            f"{entry.name}: not in the cache, and could not be downloaded: {error}; without a network, {by_hand}"
        ) from error
    return file


def _checksums(entry: Entry, folder: Path) -> list[Checksum]:
    """Those that are published, and that of the first download."""
    known = list((entry.checksums or {}).items())
    with suppress(OSError, IndexError):
        known.append(("sha256", _record(folder, entry.file).read_text().split()[0]))
    return known


def _record(folder: Path, file: str) -> Path:
    """Where a checksum is pinned, in the format of `sha256sum`."""
    return folder / f"{file}.sha256"


def _is_pinned(folder: Path, file: Path) -> bool:
    record = _record(folder, file.name)
    return file.is_file() and record.is_file() and record.stat().st_mtime_ns >= file.stat().st_mtime_ns


def _pin(entry: Entry, folder: Path, file: Path) -> None:
    """Checks a file that is new here, and remembers its checksum."""
    record = _record(folder, entry.file)
    if _is_pinned(folder, file):
        return
    size = entry.size if isinstance(entry.size, int) else None
    try:
        check_file(file, str(file), checksums=_checksums(entry, folder), size=size)
    except ValueError as error:
        accept = f", or {record.name} beside it to accept this one" if record.is_file() else ""
        raise ValueError(f"{error}; delete the file to download it again{accept}") from None
    with replacing(record) as temporary:
        temporary.write_text(f"{digest(file)}  {entry.file}\n")


def _readable(entry: Entry, folder: Path, file: Path) -> Path:
    """What `load_checkpoint` reads, made of the published file."""
    if entry.archive:
        if not (folder / "files").is_dir():
            unpack(file, folder / "files")
        return _held(entry, folder)
    if entry.pickled:
        made = folder / f"{entry.name}.safetensors"
        if not made.is_file() or made.stat().st_mtime_ns < file.stat().st_mtime_ns:
            # Under their published names: they are translated when they are read.
            write_converted(made, entry.model, entry.options, read_pickled_module(file), source=entry.file)
        return made
    return file


def _held(entry: Entry, folder: Path) -> Path:
    assert entry.archive is not None
    found = sorted((folder / "files").rglob(entry.archive))
    if len(found) != 1:
        raise ValueError(f"{folder / entry.file}: expected one {entry.archive} in it, got {len(found)}")
    return found[0].parent if entry.archive == "encoder.pth" else found[0]
