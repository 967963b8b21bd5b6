"""Pickles that would run something: refused by name, in one wording, wherever weights are read; nothing runs."""

import builtins
import os
import pickle
import re
import subprocess
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import tiny_config
from torch import nn

from mdepth_fast.cli import main
from mdepth_fast.inference import load_system, load_trained
from mdepth_fast.models import create_model
from mdepth_fast.netadapt.algorithm import _Store
from mdepth_fast.systems.saved import read_checkpoint
from mdepth_fast.training.run import train
from mdepth_fast.weights import load_checkpoint, load_encoder_weights, read_content

CALLS = {
    "system": lambda flag: (os.system, (f"touch {flag}",)),
    "exec": lambda flag: (builtins.exec, (f"open({str(flag)!r}, 'w')",)),
    "Popen": lambda flag: (subprocess.Popen, (["touch", str(flag)],)),
    "getattr": lambda flag: (builtins.getattr, ("", "upper")),
    "load": lambda flag: (torch.hub.load, (str(flag), "net")),
    "Sequential": lambda flag: (nn.Sequential, ()),
}


class Payload:
    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return self.call


def _archive(path, content, protocol):
    """As `torch.save` writes, which leaves the protocol no choice where it looks at names."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, protocol))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


CONTAINERS = {
    "zip.pth": lambda path, content: torch.save(content, path),
    "zip4.ckpt": lambda path, content: _archive(path, content, 4),
    "legacy.pth": lambda path, content: torch.save(content, path, _use_new_zipfile_serialization=False),
    "plain.pt": lambda path, content: path.write_bytes(pickle.dumps(content, 4)),
    "arrays.pk": lambda path, content: path.write_bytes(pickle.dumps(content, 2)),
    "arrays.npy": lambda path, content: np.save(path, content, allow_pickle=True),
    "arrays.npz": lambda path, content: np.savez(path, a=np.array([content], dtype=object)),
}


@pytest.fixture
def hostile(tmp_path):
    """Writes a payload; when the test ends, nothing of it must have run."""
    flag = tmp_path / "ran"

    def write(container, call="system", path=None):
        path = path or tmp_path / container
        tensors = {} if "arrays" in container else {"a": torch.zeros(2)}
        CONTAINERS[container](path, {"state_dict": tensors, "b": Payload(CALLS[call](flag))})
        return path

    yield write
    assert not flag.exists()


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("call", CALLS)
def test_payloads_are_refused_by_name(hostile, container, call):
    path = hostile(container, call)
    with pytest.raises(ValueError) as caught:
        read_content(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: refused: it holds Python objects, such as "), message
    assert re.search(rf"[. ]{call};", message), message
    assert message.endswith("; a pickle can run code, so trust its source"), message


@pytest.mark.parametrize("container", ["zip.pth", "zip4.ckpt", "legacy.pth"])
def test_one_wording_wherever_weights_are_read(hostile, container, tmp_path, capsys):
    path = hostile(container)
    folder = tmp_path / "run"
    (folder / "tiny" / "001").mkdir(parents=True)
    store = _Store(folder)
    store.begin({}, 1.0, (0.0, 0.0))
    store.content["steps"] = [{"layer": "a", "before": 2, "after": 1, "cost": 1.0, "score": 1.0}]
    store._write()
    hostile(container, path=folder / "iteration_1.pt")
    hostile(container, path=folder / "tiny" / "001" / "last.ckpt")
    published = tmp_path / "published"
    published.mkdir()
    for name in ("encoder.pth", "depth.pth"):
        hostile(container, path=published / name)
    ways = {
        "trained": lambda: load_trained(path),
        "published": lambda: load_trained(published),
        "system": lambda: load_system(path),
        "model": lambda: load_checkpoint(create_model("posecnn"), path),
        "encoder": lambda: load_encoder_weights(nn.Identity(), path),
        "checkpoint": lambda: read_checkpoint(path),
        "resumed": lambda: train(tiny_config(output=str(folder)), resume="auto"),
        "netadapt": lambda: store.read({}),
    }
    for name, read in ways.items():
        with pytest.raises(ValueError) as caught:
            read()
        assert ": refused: it holds Python objects, such as posix.system; " in str(caught.value), name
    picture = tmp_path / "picture.png"
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(picture)
    for words in (["predict", str(path), str(picture)], ["convert", str(path), str(tmp_path / "out.safetensors")]):
        assert main(words) == 1
        assert f"{path}: refused: it holds Python objects, such as posix.system; " in capsys.readouterr().err


def _in_itself():
    content = {"a": torch.zeros(2)}
    content["model"] = content
    return content


def _in_one_another(times, depth):
    content = {"a": torch.zeros(2)}
    for _ in range(depth):
        content = {str(n): content for n in range(times)}
    return content


@pytest.mark.parametrize("content", [_in_itself(), _in_one_another(2, 40), _in_one_another(1, 100)])
def test_dictionaries_without_end_are_refused(content, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: .*dictionaries in dictionaries without end"):
        load_checkpoint(create_model("posecnn"), tmp_path / "w.pth")
