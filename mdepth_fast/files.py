"""Files and folders that appear whole or not at all."""

import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["making_folder", "remove_remains", "replacing"]

# Of `replacing`: hidden, with 32 hexadecimal digits.
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{32}(\.\w+)?")


@contextmanager
def replacing(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its place when the block ends without an error.

    After an error `path` is what it was, and the temporary file is gone. The folder is made where it is missing. The
    new file has the mode that the umask asks for, whatever the writer of the block gives its files.

    durable: wait until file and folder are on the disk, so that a power cut leaves the old file or the new one, never
    an empty one. It costs milliseconds: for what cannot be computed again, such as checkpoints.

    Raises:
        OSError: it cannot be written; the error names `path` and says why, also where the library that writes does not.
    """
    path = Path(path)
    with _naming(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: some writers choose the format by it. The random part keeps two writers apart. A long stem
    # is cut, so that a name that is just short enough stays so.
    temporary = path.with_name(f".{path.stem[:40]}.{uuid.uuid4().hex}{path.suffix}")
    try:
        with _naming(path, temporary):
            yield temporary
            _open_to_others(temporary)
            if durable:
                _flush(temporary)
            temporary.replace(path)
            if durable:
                _flush(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def making_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`, which gets that name when the block ends without an error.

    `path` must not exist, or be an empty folder. After an error there is neither.
    """
    path = Path(path).resolve()
    with _naming(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex}")
    with _naming(path):
        temporary.mkdir()
    try:
        yield temporary
        with _naming(path):
            if path.exists():
                path.rmdir()
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_remains(folder: Path) -> None:
    """Removes the temporary files of `replacing` that a killed process has left in a folder.

    Nobody else may be writing there.
    """
    with suppress(OSError):
        for entry in folder.iterdir():
            if _TEMPORARY.fullmatch(entry.name) and entry.is_file():
                with suppress(OSError):
                    entry.unlink()


@contextmanager
def _naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Gives an OSError the name of `path` where it has none, or that of the temporary file."""
    try:
        yield
    except Exception as error:
        # Libraries that write in C++ or Rust, and NumPy, have errors of their own, which say neither the file nor that
        # the disk is full: it is if no more can be appended.
        known = isinstance(error, OSError) and error.errno is not None
        cause = error if known else None if temporary is None else _no_more_fits(temporary)
        if not isinstance(cause, OSError) or cause.errno is None:
            raise
        if cause.filename not in (None, str(temporary), temporary, str(path)):
            raise
        if isinstance(cause, FileExistsError) and temporary is None:
            raise NotADirectoryError(cause.errno, "expected a folder, got a file", str(path)) from error
        raise OSError(cause.errno, os.strerror(cause.errno), str(path)) from error


def _no_more_fits(file: Path) -> OSError | None:
    try:
        with file.open("ab") as end:
            end.write(bytes(2**20))
            end.flush()
            os.fsync(end.fileno())
    except OSError as error:
        return error
    return None


def _open_to_others(file: Path) -> None:
    """Some writers (safetensors) make files that only their owner may read."""
    wanted = 0o666 & ~_UMASK
    if stat.S_IMODE(file.stat().st_mode) != wanted:
        with suppress(PermissionError):  # file systems without modes
            file.chmod(wanted)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if path.is_file():  # not every file system can flush a folder
            raise
    finally:
        os.close(handle)


# Only setting it tells it, which other threads would notice: once, on importing.
_UMASK = os.umask(0o022)
os.umask(_UMASK)
