"""Downloads from a server on this machine that breaks off, lies and redirects."""

import errno
import hashlib
import io
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile

import pytest
from loopback import serving

from mdepth_fast.weights import download as module
from mdepth_fast.weights.download import download, unpack

CONTENT = bytes(range(256)) * 4096
SHA = ("sha256", hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(CONTENT) as running:
        yield running


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("way", ["file", "redirect", "broken_once", "busy"])
def test_what_can_be_mended_arrives_whole(way, server, tmp_path):
    seen = []
    download(server.url(way), tmp_path / "w.pt", checksums=[SHA], progress=lambda *now: seen.append(now))
    assert (tmp_path / "w.pt").read_bytes() == CONTENT and left(tmp_path) == ["w.pt"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    if way == "broken_once":
        assert server.asked[-1][1] == f"bytes={len(CONTENT) // 2}-"


@pytest.mark.parametrize(
    ("way", "options", "error"),
    [
        ("missing", {}, "ConnectionError: .*404"),
        ("page", {}, "ConnectionError: .*expected a file, got a web page"),
        ("file", {"checksums": [("sha256", "00ff")]}, "ValueError: .*expected the sha256 00ff, got"),
        ("file", {"checksums": [("md5", "00")]}, "ValueError: .*expected the md5 00, got"),
        ("file", {"size": 7}, "ValueError: .*expected a file of 7 bytes, the server has one of 1048576"),
    ],
)
def test_what_cannot_leaves_nothing(way, options, error, server, tmp_path):
    with pytest.raises((ConnectionError, ValueError)) as raised:
        download(server.url(way), tmp_path / "w.pt", **options)
    raised.match(error.partition(": ")[2])
    assert type(raised.value).__name__ == error.partition(":")[0]
    assert left(tmp_path) == []


def test_what_breaks_off_again_and_again_is_kept_for_the_next_call(server, tmp_path):
    with pytest.raises(ConnectionError, match=r"the connection ended after \d+ of 1048576 bytes, after 4 attempts"):
        download(server.url("broken"), tmp_path / "w.pt")
    assert left(tmp_path) == [".w.pt.part", ".w.pt.part.json"]
    here = (tmp_path / ".w.pt.part").stat().st_size
    assert here == len(CONTENT) * 15 // 16
    # Another address, or another file there: from the beginning.
    server.tag = '"2"'
    download(server.url("broken_once"), tmp_path / "w.pt", checksums=[SHA])
    assert server.asked[4] == ("/broken_once", None) and left(tmp_path) == ["w.pt"]


def test_another_file_at_the_same_address_is_not_appended(server, tmp_path):
    with pytest.raises(ConnectionError):
        download(server.url("broken"), tmp_path / "w.pt")
    server.tag, server.content = '"2"', CONTENT[::-1]
    part = tmp_path / ".w.pt.part"
    with pytest.raises(ConnectionError):
        download(server.url("broken"), tmp_path / "w.pt")
    assert server.asked[4][1] and part.read_bytes() == CONTENT[::-1][: part.stat().st_size]


def test_a_wrong_file_at_the_last_attempt_is_an_error(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ATTEMPTS", 2)
    with pytest.raises(ValueError, match="expected the sha256 00ff, got"):
        download(server.url("broken_once"), tmp_path / "w.pt", checksums=[("sha256", "00ff")])
    assert left(tmp_path) == []


def test_no_network(tmp_path):
    with pytest.raises(ConnectionError, match="cannot be reached"):
        download("http://127.0.0.1:9/w.pt", tmp_path / "w.pt")
    assert left(tmp_path) == []


def test_an_encrypted_address_leads_to_no_other():
    request = urllib.request.Request("https://127.0.0.1/w.pt")
    with pytest.raises(urllib.error.URLError, match="which is not encrypted"):
        module._SafeRedirects().redirect_request(request, None, 302, "", {}, "http://127.0.0.1/w.pt")


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_full_disk_names_the_file(when, server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if when == "before":
        usage = type(module.shutil.disk_usage(tmp_path))
        monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(10, 10, 0))
    progress = full if when == "while" else None
    with pytest.raises(OSError, match=r"w\.pt: the disk is full; MDEPTH_CACHE"):
        download(server.url("file"), tmp_path / "w.pt", progress=progress)
    assert left(tmp_path) == []


def archive(kind, name, link=False):
    made = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(made, "w") as file:
            member = zipfile.ZipInfo(name)
            member.external_attr = (stat.S_IFLNK if link else stat.S_IFREG) << 16
            file.writestr(member, b"content")
    else:
        with tarfile.open(fileobj=made, mode="w:gz") as file:
            member = tarfile.TarInfo(name)
            member.size = 0 if link else 7
            member.type, member.linkname = (tarfile.SYMTYPE, "/etc") if link else (tarfile.REGTYPE, "")
            file.addfile(member, None if link else io.BytesIO(b"content"))
    return made.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives(kind, tmp_path):
    packed = tmp_path / "packed"
    packed.write_bytes(archive(kind, "folder/w.pt"))
    unpack(packed, tmp_path / "files")
    assert (tmp_path / "files/folder/w.pt").read_bytes() == b"content"
    for number, bad in enumerate(
        [
            *(archive(kind, name) for name in ("../w.pt", "a/../../w.pt", "/w.pt", "C:\\w.pt", "..\\w.pt")),
            archive(kind, "w.pt", link=True),
            packed.read_bytes()[:-30],
            b"no archive",
        ]
    ):
        packed.write_bytes(bad)
        with pytest.raises(ValueError, match=f"^{packed}: "):
            unpack(packed, tmp_path / f"bad{number}")
    assert left(tmp_path) == ["files", "packed"]


def test_a_content_out_of_all_proportion(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_UNPACKED", 6)
    for kind in ("zip", "tar"):
        (tmp_path / "w").write_bytes(archive(kind, "w.pt"))
        with pytest.raises(ValueError, match="its content has 7 bytes"):
            unpack(tmp_path / "w", tmp_path / "files")
    with pytest.raises(ValueError, match="the file has over 6 bytes"):
        download(server.url("file"), tmp_path / "more")
    assert left(tmp_path) == ["w"]
