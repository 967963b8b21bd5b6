"""The recording of `mdepth-fast view`, read back with Rerun's own reader."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mdepth_fast.cli import main
from mdepth_fast.inference import DepthMap, point_cloud, write_map
from mdepth_fast.kinds import UNITS, Kind

try:
    import rerun  # noqa: F401
    from rerun.chunk import RrdReader
except ImportError:
    pytest.skip("rerun: not installed, or another version", allow_module_level=True)

K = np.array([[40.0, 0, 29.5], [0, 40.0, 19.5], [0, 0, 1]])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for index in range(3):
        write(tmp_path / "images" / f"f{index}.png", index)
    return tmp_path / "images"


def write(path: Path, index: int) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((40, 60, 3), 50 * index, np.uint8)).save(path)


def maps(folder: Path, kind: Kind = "metric", count: int = 3) -> list[DepthMap]:
    folder.mkdir()
    made = [DepthMap(np.full((40, 60), 2.0 + index, np.float32), kind, UNITS[kind], K) for index in range(count)]
    for index, map in enumerate(made):
        write_map(folder / f"f{index}_depth.npy", map, format="npy")
    return made


def read(path: Path) -> dict[str, dict[str, list[Any]]]:
    """Values by entity and component."""
    found: dict[str, dict[str, list[Any]]] = {}
    for chunk in RrdReader(path).stream().to_chunks():
        batch = chunk.to_record_batch()
        columns = found.setdefault(chunk.entity_path, {})
        for name in batch.schema.names:
            columns.setdefault(name, []).extend(batch.column(name).to_pylist())
    return found


def test_points_are_where_camera_and_pose_put_them(images: Path, tmp_path: Path, capsys: Any) -> None:
    made = maps(tmp_path / "maps")
    pose = np.array([[0, 0, 1, 5.0], [0, 1, 0, 0], [-1, 0, 0, 1]])
    np.savetxt(tmp_path / "poses.txt", np.tile(pose.reshape(1, 12), (3, 1)))
    words = ["view", str(images), f"--maps={tmp_path / 'maps'}", f"--poses={tmp_path / 'poses.txt'}"]
    output = tmp_path / "a.rrd"
    assert main([*words, f"--output={output}"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and f"{output}: 3 frames, 7200 points, trajectory of 3 poses" in captured.out
    found = read(output)
    entities = {"/world/camera", "/world/camera/image", "/world/camera/depth", "/world/points", "/world/trajectory"}
    assert entities <= found.keys()
    positions = np.array(found["/world/points"]["Points3D:positions"][1])
    np.testing.assert_allclose(positions, point_cloud(made[1])[0] @ pose[:, :3].T + pose[:, 3], atol=1e-5)
    assert [*tmp_path.glob(".a.*")] == []


def test_inverse_depth_has_no_points(images: Path, tmp_path: Path, capsys: Any) -> None:
    maps(tmp_path / "maps", "affine_inverse")
    assert main(["view", str(images), f"--maps={tmp_path / 'maps'}", f"--output={tmp_path / 'a.rrd'}"]) == 0
    assert "no points: inverse depth up to scale and shift is not depth" in capsys.readouterr().err
    found = read(tmp_path / "a.rrd")
    assert "/world/points" not in found and "/world/camera/depth" in found


def test_without_images(tmp_path: Path, capsys: Any) -> None:
    maps(tmp_path / "maps")
    assert main(["view", f"--maps={tmp_path / 'maps'}", "--every=2", f"--output={tmp_path / 'a.rrd'}"]) == 0
    assert "2 frames, 4800 points" in capsys.readouterr().out


def test_a_full_disk_leaves_nothing(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    maps(tmp_path / "maps")
    left = iter([1 << 30, 1 << 30, 100 << 20])  # it fills up at the second frame
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=next(left)))
    assert main(["view", f"--maps={tmp_path / 'maps'}", f"--output={tmp_path / 'a.rrd'}"]) == 1
    assert "expected 256 MiB of free space for a recording, got 100" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["maps"]


def test_what_is_wrong_is_said_in_one_line(images: Path, tmp_path: Path, capsys: Any) -> None:
    maps(tmp_path / "maps", count=2)
    np.savetxt(tmp_path / "poses.txt", np.eye(4)[:3].reshape(1, 12))
    (tmp_path / "empty").mkdir()
    output = tmp_path / "a.rrd"
    with_maps = [str(images), f"--maps={tmp_path / 'maps'}"]
    for words, text in [
        ([*with_maps, f"--poses={tmp_path / 'poses.txt'}"], "poses: expected one for each of 3 frames, got 1"),
        ([str(images), f"--maps={tmp_path / 'empty'}"], "expected maps that predict has written"),
        ([str(images)], "--weights, --maps: expected a network, or the maps"),
        ([*with_maps, "--K=1,1,1,1", "--view=60"], "--K, --view: expected one of them, got both"),
        ([*with_maps, "--view=180"], "angle of view: expected 1 to 170 degrees, got 180"),
    ]:
        view = [] if "--view=180" not in words else words
        if view:
            for path in (tmp_path / "maps").iterdir():
                path.unlink()
            write_map(
                tmp_path / "maps" / "f0_depth.npy", DepthMap(np.ones((40, 60), np.float32), "metric", "m"), format="npy"
            )
        assert main(["view", *words, f"--output={output}"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert text in line and not output.exists() and not [*tmp_path.glob(".a.*")]
    maps_left = maps(tmp_path / "two", count=2)
    assert main(["view", str(images), f"--maps={tmp_path / 'two'}", f"--output={output}"]) == 3
    assert len(maps_left) == 2 and "1 left out: " in capsys.readouterr().err and output.exists()
