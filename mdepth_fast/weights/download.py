"""Files of the web, in their place only when they are whole and checked."""

import errno
import hashlib
import http.client
import json
import shutil
import ssl
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

from mdepth_fast.files import making_folder, replacing

__all__ = ["Checksum", "Progress", "check_file", "digest", "download", "unpack"]

Checksum = tuple[str, str]
"""Name of an algorithm of hashlib, and the hexadecimal digits that are known: all, or the first ones."""

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there, and all bytes where they are known."""

_CHUNK = 1 << 20
_ATTEMPTS = 4
_PAUSE = 1.0  # seconds before the second attempt; twice as long before each further one
_TIMEOUT = 30.0  # seconds without a byte
_UNPACKED = 8 << 30  # bytes, at most, of a file or an archive's content: far more than any network


def download(
    url: str,
    path: Path,
    *,
    checksums: Iterable[Checksum] = (),
    size: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Fetch `url` as the file `path`, which appears once size and checksums are right.

    What has come is kept beside it under a hidden name, so that another attempt, or the next call, goes on from there;
    the server is asked whether the file is still the same. One call at a time for a path: the caller locks it.

    ConnectionError where the server cannot be reached, refuses or breaks off. ValueError for a file of another size or
    checksum. OSError that names the file when the disk is full.
    """
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(_ATTEMPTS):
        resumed = part.exists()
        try:
            _receive(url, part, size, progress)
            check_file(part, url, checksums=checksums, size=size)
        except _BrokenOff as error:
            if attempt == _ATTEMPTS - 1:
                raise ConnectionError(f"{url}: {error}, after {_ATTEMPTS} attempts") from error
            time.sleep(_PAUSE * 2**attempt)
            continue
        except ValueError:
            _forget(part)
            if not resumed or attempt == _ATTEMPTS - 1:
                raise
            continue  # its beginning may be that of another file
        except OSError as error:
            if not _is_full(error):
                raise
            _forget(part)
            raise _full(path, error) from error
        part.replace(path)
        _forget(part)
        return


def _is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _full(path: Path, error: OSError) -> OSError:
    return OSError(error.errno, f"{path}: the disk is full; MDEPTH_CACHE names another folder")


class _BrokenOff(Exception):
    """What another attempt may mend."""


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect from an encrypted connection to another kind."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme not in ("https", urlsplit(req.full_url).scheme):
            raise urllib.error.URLError(f"it redirects to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _receive(url: str, part: Path, size: int | None, progress: Progress | None) -> None:
    """Appends to `part` until it is complete."""
    state = _state(part)
    same, start = _resumable(part, url)
    headers = {"User-Agent": "mdepth-fast", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": same}
    opener = urllib.request.build_opener(_SafeRedirects)
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT) as response:
            if response.headers.get_content_type() == "text/html":
                raise ConnectionError(f"{url}: expected a file, got a web page")
            if response.status != 206:
                start = 0
            elif not str(response.headers.get("Content-Range")).startswith(f"bytes {start}-"):
                raise ConnectionError(f"{url}: the server answers with another part of the file than it was asked for")
            left = response.headers.get("Content-Length")
            total = start + int(left) if left is not None else size
            if size is not None and total != size:
                raise ValueError(f"{url}: expected a file of {size} bytes, the server has one of {total}")
            _room(part, None if total is None else total - start)
            same = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
            state.write_text(json.dumps({"url": url, "same": "" if same.startswith("W/") else same}))
            with part.open("ab" if start else "wb") as file:
                done = start
                while block := response.read(_CHUNK):
                    file.write(block)
                    done += len(block)
                    if done > _UNPACKED:
                        raise ValueError(f"{url}: the file has over {_UNPACKED} bytes, more than any network")
                    if progress is not None:
                        progress(done, total)
            if total is not None and done < total:
                raise _BrokenOff(f"the connection ended after {done} of {total} bytes")
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing follows what is here: it is of another file
            _forget(part)
        if error.code in (408, 416, 429) or error.code >= 500:
            raise _BrokenOff(f"the server answers {error.code} {error.reason}") from error
        raise ConnectionError(f"{url}: the server answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise ConnectionError(f"{url}: cannot be reached ({error.reason})") from error
    except (http.client.HTTPException, TimeoutError, ConnectionResetError, ssl.SSLError) as error:
        raise _BrokenOff(f"the connection broke ({str(error) or type(error).__name__})") from error


def _state(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _resumable(part: Path, url: str) -> tuple[str, int]:
    """What tells the server's file from another one, and how many of its bytes are here: 0 where nothing tells."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(_state(part).read_text())
        if known["url"] == url and known["same"]:
            return known["same"], part.stat().st_size
    return "", 0


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state(part).unlink(missing_ok=True)


def _room(path: Path, needed: int | None) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed is not None and needed > free:
        raise OSError(errno.ENOSPC, f"needs {needed} bytes, {free} are free")


def digest(path: Path, algorithm: str = "sha256") -> str:
    """The checksum of a file, in hexadecimal digits."""
    made = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            made.update(block)
    return made.hexdigest()


def check_file(path: Path, name: str, *, checksums: Iterable[Checksum], size: int | None = None) -> None:
    """ValueError, which calls it `name`, for a file of another size or checksum."""
    got = path.stat().st_size
    if size is not None and got != size:
        raise ValueError(f"{name}: expected {size} bytes, got {got}: truncated, or another file")
    for algorithm, known in checksums:
        found = digest(path, algorithm)
        if not found.startswith(known):
            raise ValueError(f"{name}: expected the {algorithm} {known}, got {found}: damaged, or another file")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar archive into `folder`, which appears whole and must not exist.

    Files and folders alone are unpacked. ValueError for an archive that is damaged or has a member that leads out of
    the folder, is a link or a device, or is far too large. OSError that names the folder when the disk is full.
    """
    try:
        with making_folder(folder) as temporary:
            if zipfile.is_zipfile(archive):
                _unpack_zip(archive, temporary)
            else:
                _unpack_tar(archive, temporary)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{archive}: cannot be unpacked ({error})") from error
    except OSError as error:
        if not _is_full(error):
            raise
        raise _full(folder, error) from error


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = [member for member in opened.infolist() if not member.is_dir()]
        _bounded(archive, sum(member.file_size for member in members))
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)
            target = _inside(archive, folder, member.filename, kind in (0, stat.S_IFREG))
            with opened.open(member) as source, replacing(target) as temporary, temporary.open("wb") as file:
                shutil.copyfileobj(source, file)


def _unpack_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as opened:
        members, size = [], 0
        for member in opened:
            # While reading on: what is skipped is unpacked, too.
            _bounded(archive, size := size + member.size)
            members += [] if member.isdir() else [member]
        for member in members:
            target = _inside(archive, folder, member.name, member.isreg())
            source = opened.extractfile(member)
            assert source is not None  # of a regular file
            with source, replacing(target) as temporary, temporary.open("wb") as file:
                shutil.copyfileobj(source, file)


def _bounded(archive: Path, size: int) -> None:
    if size > _UNPACKED:
        raise ValueError(f"{archive}: its content has {size} bytes, more than any network")


def _inside(archive: Path, folder: Path, name: str, regular: bool) -> Path:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or PureWindowsPath(name).drive or ".." in parts.parts or not regular:
        raise ValueError(f"{archive}: expected files inside of the folder, got {name}, which leads elsewhere")
    return folder / parts
