"""Every file of a result appears whole or not at all, whichever part of the package writes it."""

import ast
import os
import resource
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mdepth_fast import visualize
from mdepth_fast.data import Trajectory
from mdepth_fast.files import replacing
from mdepth_fast.inference import MAP_FORMATS, DepthMap, write_map
from mdepth_fast.netadapt import LatencyTable, Step, algorithm
from mdepth_fast.training.checkpoint import AtomicCheckpointIO
from mdepth_fast.weights import write_converted

ROOT = Path(__file__).parents[1]


def test_a_block_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "new folder" / "file.txt"
    with replacing(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == path.suffix
        temporary.write_text("old")
    with pytest.raises(RuntimeError, match="half way"), replacing(path) as temporary:
        temporary.write_text("new")
        raise RuntimeError("half way")
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
    with replacing(path) as one, replacing(path) as other:  # of two writers the last wins
        one.write_text("one")
        other.write_text("other")
        assert path.read_text() == "old"
    assert path.read_text() == "one" and list(path.parent.iterdir()) == [path]


def test_an_error_names_the_file_and_the_cause(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"expected a folder, got a file: '.*file'"):
        replacing(tmp_path / "file" / "map.png").__enter__()
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as error, replacing(tmp_path / "folder") as temporary:
        temporary.write_text("text")
    assert error.value.filename == str(tmp_path / "folder")
    with pytest.raises(OSError, match="File name too long") as error, replacing(tmp_path / ("x" * 256)) as temporary:
        temporary.write_text("text")
    assert error.value.filename == str(tmp_path / ("x" * 256))
    long = tmp_path / ("x" * 250 + ".png")
    with replacing(long) as temporary:  # whose own name is longer, were it not cut
        temporary.write_text("text")
    other = OSError(2, "No such file or directory", "frame7.png")
    with pytest.raises(OSError, match=r"frame7\.png"), replacing(tmp_path / "map.png"):
        raise other
    assert {entry.name for entry in tmp_path.iterdir()} == {"file", "folder", long.name}


def test_what_must_last_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    flush, rename = os.fsync, Path.replace

    def note_flush(handle):
        done.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        flush(handle)

    def note_rename(path, target):
        done.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_flush)
    monkeypatch.setattr(Path, "replace", note_rename)
    with replacing(tmp_path / "last.ckpt", durable=True) as temporary:
        temporary.write_text("weights")
    assert done == [temporary.name, "rename", tmp_path.name]


def write_latencies(path):
    table = LatencyTable()
    table.path = path
    table.entries = {f"layer {number}": 1.0 for number in range(20)}
    table.save()


def write_steps(path):
    store = algorithm._Store(path.parent)
    store.content = {"steps": [number for number in range(100)]}
    store._write()


def write_iteration(path):
    store = algorithm._Store(path.parent)
    store.content = {}
    store.add([Step("conv", 8, 6, 1.0, 0.5)], nn.Linear(60, 60))


DEPTH = np.random.default_rng(0).random((50, 60)) + 0.5
MAP = DepthMap(DEPTH, "metric", "m", np.array([[50.0, 0, 29.5], [0, 50, 24.5], [0, 0, 1]]))
TRAJECTORY = Trajectory(np.arange(50), np.tile(np.eye(4), (50, 1, 1)))
STATE = {"weight": torch.rand(50, 60)}
WRITERS = {
    "color.png": lambda path: visualize.write_png(path, visualize.colorize(DEPTH)),
    "depth.png": lambda path: visualize.write_depth_png(path, DEPTH),
    "depth.npy": lambda path: visualize.write_npy(path, DEPTH),
    **{f"map.{format}": partial(write_map, map=MAP, format=format) for format in MAP_FORMATS},
    "without_suffix": lambda path: visualize.write_npy(path, DEPTH),
    "panel.png": lambda path: visualize.draw_panel(path, [visualize.Cell("depth", DEPTH)]),
    "plot.png": lambda path: visualize.draw_trajectories(path, {"prediction": DEPTH}),
    "kitti.txt": lambda path: TRAJECTORY.write_kitti(path),
    "tum.txt": lambda path: TRAJECTORY.write_tum(path),
    "weights.safetensors": lambda path: write_converted(path, "posecnn", {}, STATE, "test"),
    "last.ckpt": lambda path: AtomicCheckpointIO().save_checkpoint({"state_dict": STATE}, path),
    "latency.json": write_latencies,
    "steps.json": write_steps,
    "iteration_1.pt": write_iteration,
}


@contextmanager
def full_disk(limit):
    """No file of this process grows beyond `limit` bytes: writing more is an error, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_what_was_there(name, tmp_path):
    path = tmp_path / name
    WRITERS[name](path)
    # As the umask says, whatever the writer gives its files.
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode
    plain.unlink()
    size = path.stat().st_size
    assert size > 200
    for file in tmp_path.iterdir():
        file.unlink()
    for old in (None, b"what was there"):
        if old is not None:
            path.write_bytes(old)
        with full_disk(size // 2), pytest.raises(OSError, match="File too large") as error:
            WRITERS[name](path)
        assert error.value.filename == str(path)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == ({} if old is None else {name: old})
    WRITERS[name](path)
    assert path.stat().st_size == size


# Written in place, and why that is right.
IN_PLACE = {
    "mdepth_fast/files.py": "the temporary file itself, to see whether the disk is full",
    "mdepth_fast/data/cache.py": "in a folder that is renamed when whole; samples by a checksum that is written last",
    "mdepth_fast/data/prepare.py": "in a folder that is renamed when whole",
    "mdepth_fast/inference/export.py": "to a temporary name, renamed once the file has passed its check",
    "mdepth_fast/inference/clip.py": "a temporary file that is open from one frame to the next, renamed when whole",
    "benches/predict_video.py": "into a temporary folder",
    "mdepth_fast/training/folder.py": "a lock, which says who holds it",
    "mdepth_fast/data/shards.py": "into memory, for a tar file under a temporary name",
    "mdepth_fast/engines/onnx_file.py": "to the path of its caller, a temporary one",
    "mdepth_fast/weights/download.py": "a part of a download, renamed when whole, and where it came from",
    "mdepth_fast/weights/unpickle.py": "into the temporary folder of its parent process",
}
FUNCTIONS = {"dump", "save_file", "savefig", "savez", "savetxt", "tofile", "to_csv"}


def writes(node):
    """Whether a call may write a file: of a writer's name, `.save(with an argument)`, `open` in a mode to write."""
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name == "open":
        modes = [
            part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)
        ]
        return any(set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes)
    if name in ("write_bytes", "write_text"):  # of a Path, which take the content alone
        return len(node.args) == 1
    return name in FUNCTIONS or (name == "save" and isinstance(node.func, ast.Attribute) and bool(node.args))


def found_in(source):
    """Calls that write, outside of every `with replacing(...)`."""

    def search(node):
        if isinstance(node, ast.With) and any("replacing(" in ast.unparse(item.context_expr) for item in node.items):
            return
        if writes(node):
            yield ast.unparse(node)
        for child in ast.iter_child_nodes(node):
            yield from search(child)

    return list(search(ast.parse(source)))


def test_nothing_else_writes():
    found = {}
    for folder in ("mdepth_fast", "kernels", "benches"):
        for path in (ROOT / folder).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            # /proc/self/clear_refs is a switch, not a file.
            if calls := [call for call in found_in(path.read_text()) if call != "reset.write_text('5')"]:
                found[name] = calls
    assert found.keys() == IN_PLACE.keys(), found


@pytest.mark.parametrize(
    "line",
    [
        "path.write_text(text)",
        "torch.save(state, path)",
        "image.save(path)",
        "save_file(state, path)",
        "file = path.open('w')",
        "with open(path, 'ab') as file: file.write(data)",
        "def write():\n    figure.savefig(path)",
    ],
)
def test_a_writer_in_place_is_found(line):
    assert found_in(line)
    inner = "".join(f"    {part}\n" for part in line.split("\n"))
    assert not found_in(f"with replacing(target) as path:\n{inner}")
    assert not found_in("text = path.open().read()\nfile = open(path, 'rb')\ntable.save()")
