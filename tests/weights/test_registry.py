"""Published weights by name: the list as it is packaged, and downloads of small files from a server on this machine."""

import dataclasses
import inspect
import threading
import zipfile

import pytest
import tiny_run  # noqa: F401  (registers tiny_depth)
import torch
from loopback import serving
from PIL import Image

import mdepth_fast
from mdepth_fast.cli import main
from mdepth_fast.inference import load_trained
from mdepth_fast.models import create_model
from mdepth_fast.models.monodepth2 import PUBLISHED_RANGE, STEREO_UNIT
from mdepth_fast.models.registry import get_factory
from mdepth_fast.weights import registry
from mdepth_fast.weights.registry import FREE, Entry, fetch, find, published


class TestList:
    def test_every_entry_makes_its_network(self):
        made = {}
        for entry in published():
            factory = get_factory(entry.model)
            inspect.signature(factory).bind(**entry.options)
            needed = getattr(factory, "func", factory).published_options
            assert needed.items() <= entry.options.items(), entry.name
            key = (entry.model, tuple(entry.options.items()))
            if not entry.model.startswith(("depth_anything", "dpt", "dorn")) and key not in made:  # these take seconds
                with torch.device("meta"):
                    made[key] = create_model(entry.model, **entry.options)
            if entry.name.startswith("monodepth2"):
                model, unit = made[key], STEREO_UNIT if "stereo" in entry.name else 1.0
                assert model.unit == ("m" if "stereo" in entry.name else None)
                assert (model.min_depth, model.max_depth) == pytest.approx([limit * unit for limit in PUBLISHED_RANGE])

    def test_entries_are_complete(self):
        assert len(published("monodepth2_*")) == 13 and len(published("depth_anything_v2_*")) == 9
        assert {"dpt_large", "fcrn_nyu", "fastdepth_pruned_nyu", "dorn_nyu", "vid2depth_kitti"} <= {
            entry.name for entry in published()
        }
        for entry in published():
            assert entry.page.startswith("https://") and entry.data and entry.licence == entry.licence.lower()
            assert entry.source is None or entry.source.startswith(("https://", "http://", "hub:"))
            assert (entry.source or "").startswith("http://") == ("without encryption" in entry.note), entry.name
            assert {result.known for result in entry.results} <= {"read", "quoted", "recalled"}
            for algorithm, digits in (entry.checksums or {}).items():
                assert algorithm in ("sha256", "md5") and int(digits, 16) and len(digits) >= 8
        labels = [(entry.model, entry.label) for entry in published()]
        assert len(set(labels)) == len(labels)
        assert not {"cc-by-nc-4.0", "monodepth2-noncommercial", "research-only", "not-stated"} & FREE

    def test_commands(self, capsys):
        assert main(["weights", "list", "dpt*"]) == 0
        assert ["dpt_hybrid_nyu", "dpt_hybrid_nyu", "mit"] in [
            line.split() for line in capsys.readouterr().out.splitlines()
        ]
        for entry in published():
            assert main(["weights", "show", entry.name]) == 0
            shown = capsys.readouterr().out
            assert entry.licence in shown and (entry.source or entry.page) in shown
        assert main(["weights", "show", "dpt_hybird"]) == 1
        assert "none are called 'dpt_hybird'; did you mean dpt_hybrid" in capsys.readouterr().err

    def test_names_of_another_model(self):
        with pytest.raises(ValueError, match=r"'kitti' is neither a file nor .* for dpt_hybrid_nyu \(nyu\)"):
            create_model("dpt_hybrid_nyu", weights="kitti")
        with pytest.raises(ValueError, match="dpt_large are for dpt_large, not for dpt_hybrid"):
            create_model("dpt_hybrid", weights="dpt_large")
        with pytest.raises(ValueError, match="no model is called 'dpt_hybird'"):
            create_model("dpt_hybird", weights="midas")


@pytest.fixture
def net():
    torch.manual_seed(0)
    return create_model("tiny_depth", norm=False)


@pytest.fixture
def server(net, tmp_path, monkeypatch):
    """Serves a state dict, which the list knows as `own`, and an archive and a pickled module."""
    monkeypatch.setenv("MDEPTH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("MDEPTH_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    with serving((tmp_path / "w.pt").read_bytes()) as running:
        common = {
            "model": "tiny_depth",
            "options": {"norm": False},
            "data": "nothing",
            "page": "https://127.0.0.1/",
        }
        free = Entry("own", "label", file="w.pt", licence="mit", source=running.url("file"), **common)
        bound = Entry("bound", "other", file="w.pt", licence="cc-by-nc-4.0", source=running.url("file"), **common)
        alone = Entry("alone", "third", file="w.pt", licence="mit", **common)
        zipped = Entry(
            "zipped", "4", file="w.zip", licence="mit", source=running.url("file"), archive="encoder.pth", **common
        )
        pickled = Entry("pickled", "5", file="w.pt", licence="mit", source=running.url("file"), pickled=True, **common)
        entries = {entry.name: entry for entry in (free, bound, alone, zipped, pickled)}
        monkeypatch.setattr(registry, "_entries", lambda: entries)
        yield running


def same(a, b):
    return all(torch.equal(x, b.state_dict()[key]) for key, x in a.state_dict().items())


class TestFetch:
    def test_once_then_from_the_cache(self, server, net, monkeypatch):
        assert same(net, create_model("tiny_depth", weights="label"))
        assert (fetch("own").parent / "w.pt.sha256").read_text().endswith("  w.pt\n")
        monkeypatch.setenv("MDEPTH_OFFLINE", "1")
        assert same(net, load_trained("own").net) and same(net, mdepth_fast.load("own"))
        assert len(server.asked) == 1

    def test_processes_take_turns(self, server):
        paths = []
        threads = [threading.Thread(target=lambda: paths.append(fetch("own"))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(paths) == 4 and len(server.asked) == 1

    def test_a_licence_is_accepted_by_name_and_remembered(self, server, capsys):
        with pytest.raises(PermissionError, match=r"bound: its licence, cc-by-nc-4.0, .*--accept-licence cc-by-nc-4.0"):
            create_model("tiny_depth", weights="bound")
        with pytest.raises(PermissionError, match=r"expected cc-by-nc-4\.0, got mit"):
            fetch("bound", accept_licence="mit")
        assert not server.asked
        assert main(["weights", "get", "bound", "--accept-licence", "CC-BY-NC-4.0"]) == 0
        assert capsys.readouterr().out.strip() == str(fetch("bound"))

    def test_without_a_network(self, server, tmp_path, net):
        file = tmp_path / "cache" / "weights" / "own" / "w.pt"
        with pytest.raises(FileNotFoundError, match=f"own: not in the cache, and offline; put the file at {file}"):
            fetch("own", offline=True)
        with pytest.raises(FileNotFoundError, match=r"alone: only a person can fetch it, from https://127"):
            fetch("alone")
        server.server_close()
        server.shutdown()
        with pytest.raises(FileNotFoundError, match=f"own: .*could not be downloaded: .*put the file at {file}"):
            fetch("own")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((tmp_path / "w.pt").read_bytes())  # by hand
        assert same(net, load_trained("own").net)

    def test_the_first_download_is_pinned(self, server, tmp_path):
        file = fetch("own")
        file.unlink()
        server.content = b"something else"
        with pytest.raises(ValueError, match=r"expected the sha256 \w{64}, got"):
            fetch("own")
        assert not file.exists()
        file.write_bytes(b"something else")  # as well by hand
        with pytest.raises(ValueError, match=r"w\.pt: expected the sha256 .*; delete .*\.sha256"):
            fetch("own")

    def test_a_file_of_the_hub(self, server, tmp_path, monkeypatch):
        asked = []
        monkeypatch.setattr(registry, "local_file", lambda *source, **options: asked.append((source, options)) or file)
        file = tmp_path / "w.pt"
        entry = dataclasses.replace(find("own"), source="hub:user/repo/w.pt")
        monkeypatch.setattr(registry, "_entries", lambda: {"own": entry})
        assert registry.cached(entry) is None and fetch("own") == file and registry.cached(entry)
        fetch("own", offline=True)
        folder = tmp_path / "cache" / "hub"
        assert asked[0] == (("hub:user/repo/w.pt",), {"cache_dir": folder})
        assert asked[1] == (("hub:user/repo/w.pt",), {"cache_dir": folder, "local_files_only": True})
        file.write_bytes(b"another")
        with pytest.raises(ValueError, match=r"w\.pt: expected the sha256 \w+, got"):
            fetch("own")

    def test_an_archive_is_unpacked(self, server, tmp_path):
        with zipfile.ZipFile(tmp_path / "w.zip", "w") as packed:
            packed.writestr("mono_640x192/encoder.pth", b"1")
            packed.writestr("mono_640x192/depth.pth", b"2")
        server.content = (tmp_path / "w.zip").read_bytes()
        folder = fetch("zipped")
        assert sorted(path.name for path in folder.iterdir()) == ["depth.pth", "encoder.pth"]
        assert fetch("zipped") == folder and len(server.asked) == 1

    def test_a_pickled_module_is_read_in_a_process_of_its_own(self, server, net, tmp_path):
        torch.save({"epoch": 3, "model": net}, tmp_path / "pickled.pt")
        server.content = (tmp_path / "pickled.pt").read_bytes()
        assert fetch("pickled").name == "pickled.safetensors"
        assert same(net, load_trained("pickled").net)


@pytest.mark.parametrize("words", [["own"], ["--weights", "own"], ["--weights=own"]])
def test_predict_takes_a_name(words, server, tmp_path, capsys):
    Image.new("RGB", (96, 64), (90, 60, 30)).save(tmp_path / "a.png")
    out = tmp_path / "out"
    if words == ["own"]:
        line = [*words, str(tmp_path / "a.png"), "--output", str(out)]
    else:
        line = ["--output", str(out), *words, str(tmp_path / "a.png")]
    assert main(["predict", *line]) == 0
    assert any(out.glob("a*.png")) and find("own").licence == "mit"


def test_every_command_that_reads_weights_takes_a_name(server, tmp_path, capsys):
    """Told by its refusal of the licence, before anything is read. `demo` and `view` ask for their packages first."""
    Image.new("RGB", (96, 64), (90, 60, 30)).save(tmp_path / "a.png")
    (tmp_path / "K.txt").write_text("50 0 48\n0 50 32\n0 0 1\n")
    image, out = str(tmp_path / "a.png"), str(tmp_path / "out")
    for words in (
        ["predict", "bound", image, "--output", out],
        ["bench", "bound"],
        ["convert", "bound", f"{out}.safetensors"],
        ["export", "bound", "--to", "onnx", "--output", f"{out}.onnx"],
        ["eval", "bound"],
        ["probe", "bound", image],
        ["odometry", "bound", "--frames", str(tmp_path)],
    ):
        assert main(words) == 1, words
        assert "bound: its licence, cc-by-nc-4.0, does not allow any use" in capsys.readouterr().err, words
    assert not server.asked
