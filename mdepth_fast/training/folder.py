"""The folder of a run: its number, the checkpoint to go on from, and who owns it."""

import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from mdepth_fast.files import remove_remains
from mdepth_fast.systems import Config
from mdepth_fast.training.checkpoint import LAST

__all__ = ["find_checkpoint", "new_run_folder", "owning"]

_LOCK = "run.lock"
_owned: set[Path] = set()  # by this process, which its own lock does not keep out


def new_run_folder(config: Config) -> Path:
    """Makes <output>/<run>/<next free number>."""
    parent = config.folder
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f"output: expected a folder for runs, got a file in {error.filename}") from error
    number = max((int(entry.name) for entry in parent.iterdir() if entry.name.isdecimal()), default=0)
    while True:
        number += 1
        folder = parent / f"{number:03d}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder


def find_checkpoint(config: Config, resume: str) -> Path | None:
    """The checkpoint to go on from: a file, a run folder, or "auto" for the newest run of this name that has one.

    None for "auto" where there is none yet: then a run begins.
    """
    if resume == "auto":
        parent = config.folder
        found = sorted(parent.glob(f"*/{LAST}"), key=lambda path: path.stat().st_mtime)
        return found[-1] if found else None
    path = Path(resume)
    path = path / LAST if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"resume: no such checkpoint: {path}")
    return path


@contextmanager
def owning(folder: Path, *, new: bool) -> Iterator[None]:
    """Keeps every other process out of a run folder, and clears what killed processes have left in it.

    The file run.lock is locked and says who trains there. The system drops the lock with the process, however it ends,
    so a killed owner keeps nobody out. After an error, a `new` folder that has got no checkpoint goes, too.

    ValueError if another process trains there.
    """
    path = folder.resolve() / _LOCK
    file = _lock(path)
    _owned.add(path)
    try:
        remove_remains(folder)
        yield
    except BaseException:
        if new and not any(folder.glob("*.ckpt")):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        _owned.discard(path)
        path.unlink(missing_ok=True)
        file.close()


def _lock(path: Path) -> IO[str]:
    while True:
        # Closing any handle of the file gives up this process's lock on it: that must not be the lock of another run.
        if path in _owned:
            raise _taken(path)
        file = path.open("a+")
        try:
            # Of the process, so that the children that load its data do not hold it after its death.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = False
        except OSError as error:
            # A file system without locks: there the owner is who the file says, if that process lives.
            taken = isinstance(error, BlockingIOError | PermissionError) or _lives(path)
        if taken:
            owner = _owner(path)
            file.close()
            raise _taken(path, owner)
        with suppress(FileNotFoundError):
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                break
        file.close()  # the owner before has just removed the file
    file.truncate(0)
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started}) + "\n")
    file.flush()
    return file


def _taken(path: Path, owner: Mapping[str, object] | None = None) -> ValueError:
    who = "another process" if owner is not None else "another run of this process"
    if owner:
        who = f"process {owner.get('pid')} on {owner.get('host')}, since {owner.get('started')}"
    return ValueError(f"{path.parent}: {who} trains in this folder already; wait for it or end it first")


def _owner(path: Path) -> dict[str, object]:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return found
    return {}


def _lives(path: Path) -> bool:
    owner = _owner(path)
    pid = owner.get("pid")
    if owner.get("host") != socket.gethostname() or not isinstance(pid, int) or pid == os.getpid():
        return bool(owner) and pid != os.getpid()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
