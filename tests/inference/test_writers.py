"""Maps on disk: what every format keeps of every kind, and what it refuses."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from mdepth_fast.data.samples import DataError, read_depth
from mdepth_fast.inference import MAP_FORMATS, DepthMap, read_map, write_map
from mdepth_fast.kinds import KINDS, UNITS, Kind, is_inverse
from mdepth_fast.models import DepthPrediction
from mdepth_fast.visualize import color_range, colorize, write_png

K = np.array([[40.0, 0.5, 14.5], [0, 41.0, 9.5], [0, 0, 1]])
SIZE = (20, 30)


def example(kind: Kind, **options: Any) -> DepthMap:
    """A map of values in 1 to 6, with the colours of the pixels' places."""
    values = 1 + 5 * torch.rand(2, 1, *SIZE)
    image = np.stack([*np.mgrid[0:20, 0:30], np.full(SIZE, 7)], 2).astype(np.uint8)
    return DepthMap.of(
        DepthPrediction(values, kind, UNITS[kind]), 1, **{"K": torch.from_numpy(K), "image": image} | options
    )


def read_ply(path: Path) -> tuple[list[str], NDArray[Any]]:
    """Header lines and vertices."""
    header, _, body = path.read_bytes().partition(b"end_header\n")
    lines = header.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    types = {"float": "<f4", "uchar": "u1"}
    fields = [(line.split()[2], types[line.split()[1]]) for line in lines if line.startswith("property")]
    (count,) = (int(line.split()[2]) for line in lines if line.startswith("element vertex"))
    vertices = np.frombuffer(body, np.dtype(fields))
    assert len(vertices) == count
    return lines, vertices


@pytest.mark.parametrize("format", MAP_FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_says_what_it_holds(kind: Kind, format: str, tmp_path: Path) -> None:
    """What is read is what was written, with kind, unit and K; a point cloud takes depth alone, and says its kind."""
    map, path = example(kind), tmp_path / f"map.{format}"
    if format == "ply" and is_inverse(kind):
        with pytest.raises(ValueError, match=r"kind: expected depth for a point cloud, got .*; make it metric by to_m"):
            write_map(path, map, format=format)
        assert not path.exists()
        return
    assert write_map(path, map, format=format, scale=1000.0) == 0
    if format == "ply":
        (about,) = (
            json.loads(line.split(" ", 2)[2]) for line in read_ply(path)[0] if line.startswith("comment mdepth")
        )
        assert (about["kind"], about["unit"], about["K"]) == (kind, UNITS[kind], K.tolist())
        return
    found = read_map(path)
    assert (found.kind, found.unit, found.image) == (kind, UNITS[kind], None)
    assert found.K is not None and np.array_equal(found.K, K)
    assert found.values.dtype == np.float32
    np.testing.assert_allclose(found.values, map.values, rtol=0, atol=0.5001e-3 if format == "png" else 0)
    write_map(path, example(kind, K=None, image=None), format=format)
    assert read_map(path).K is None


@pytest.mark.parametrize("kind", KINDS)
def test_near_is_bright_in_every_kind(kind: Kind) -> None:
    """Inverse depth is not inverted again, 0 of it is far away; 0 of depth is nothing."""
    inverse = np.linspace(0.1, 1.0, 40).reshape(1, 40)
    values = inverse if is_inverse(kind) else 1 / inverse
    assert color_range(values, kind=kind) == pytest.approx(color_range(1 / inverse))
    np.testing.assert_array_equal(colorize(values, kind=kind), colorize(1 / inverse))
    holes = np.array([[0.0, np.nan, 1.0, 2.0]])
    far, none = colorize(holes, (0.0, 1.0), kind=kind)[0, :2].sum(-1)
    assert none == 0 and bool(far) is is_inverse(kind)


def test_what_is_no_value(tmp_path: Path) -> None:
    """0, negative and infinite depth is none; of inverse depth, 0 is far away, the smallest step of a PNG."""
    values = np.array([[0, -1, np.nan, np.inf, 1e-4, 2.0, 300.0]], np.float32)
    expected = {"depth": [0, 0, 0, 0, 1, 512, 65535], "inverse": [1, 1, 0, 0, 1, 512, 65535]}
    for kind in KINDS:
        map = DepthMap(values, kind, UNITS[kind])
        pixels = expected["inverse" if is_inverse(kind) else "depth"]
        assert write_map(tmp_path / "map.png", map, format="png") == 2  # 300 and, of one, 1e-4, of the other, -1
        assert np.array(Image.open(tmp_path / "map.png")).tolist() == [pixels]
        found = read_map(tmp_path / "map.png").values
        assert np.array_equal(np.isnan(found), np.array([pixels]) == 0)
        for format in ("npy", "tiff"):
            write_map(tmp_path / f"map.{format}", map, format=format)
            np.testing.assert_array_equal(read_map(tmp_path / f"map.{format}").values, values)


def test_other_programs_read_the_files(tmp_path: Path) -> None:
    map = example("metric")
    for format in ("png", "npy", "tiff"):
        write_map(tmp_path / f"map.{format}", map, format=format)
    png = Image.open(tmp_path / "map.png")
    np.testing.assert_array_equal(np.array(png), np.rint(map.values * 256.0).astype(np.uint16))
    assert json.loads(png.info["mdepth_fast"])["holds"] == "depth in m = value / 256, 0 = none"
    plain = np.load(tmp_path / "map.npy")
    assert plain.dtype == np.float32 and np.array_equal(plain, map.values)
    with Image.open(tmp_path / "map.tiff") as tiff:
        assert tiff.mode == "F" and json.loads(tiff.tag_v2[270])["unit"] == "m"  # type: ignore[attr-defined]
    for path in tmp_path.iterdir():
        if path.suffix != ".json":
            np.testing.assert_allclose(read_depth(path), map.values, rtol=0, atol=0.5001 / 256)


def test_ground_truth_is_read_as_metres_only_where_it_is(tmp_path: Path) -> None:
    for format in ("png", "npy", "tiff"):
        path = tmp_path / f"map.{format}"
        for kind, words in (
            ("affine_inverse", "inverse depth up to scale and shift"),
            ("disparity", "disparity in px"),
        ):
            write_map(path, example(kind), format=format)  # type: ignore[arg-type]
            with pytest.raises(DataError, match=rf"{re.escape(str(path))}: expected depth in metres, got {words}"):
                read_depth(path)
        write_map(path, example("relative"), format=format)
        with pytest.warns(UserWarning, match="read as metres, but holds depth up to one factor"):
            read_depth(path)
    write_map(tmp_path / "map.png", example("metric"), format="png", scale=1000.0)
    with pytest.raises(DataError, match=r"expected value = metres \* 256, got value = depth \* 1000"):
        read_depth(tmp_path / "map.png")
    assert read_depth(tmp_path / "map.png", 1000.0).max() <= 6


def test_points_project_to_their_pixels(tmp_path: Path) -> None:
    map = example("metric")
    map.values[3, 4], map.values[5, 6] = np.nan, 0
    write_map(tmp_path / "map.ply", map, format="ply")
    lines, points = read_ply(tmp_path / "map.ply")
    assert "comment x to the right, y down, z forward; metres" in lines
    assert len(points) == 20 * 30 - 2
    x, y, z = (points[axis].astype(np.float64) for axis in "xyz")
    u, v, w = K @ np.stack([x, y, z])
    np.testing.assert_allclose([v / w, u / w], [points["red"], points["green"]], atol=1e-4)  # colours: row, column
    np.testing.assert_array_equal(points["z"], map.values[points["red"], points["green"]])
    assert (points["blue"] == 7).all()
    write_map(tmp_path / "map.ply", example("relative", image=None), format="ply")
    lines, points = read_ply(tmp_path / "map.ply")
    assert points.dtype.names == ("x", "y", "z")
    assert any("no unit: depth is known up to one factor" in line for line in lines)


def test_flying_points_are_left_out(tmp_path: Path) -> None:
    """A step of depth, blurred over one column: the columns beside it go, and a gentle slope stays."""
    depth = np.where(np.arange(30) < 15, 2.0, 4.0) * np.ones((20, 1)) + 0.01 * np.arange(20)[:, None]
    depth[:, 15] = 3.0
    depth[0, 0] = np.nan
    map = DepthMap(depth.astype(np.float32), "metric", "m", K)
    counts = []
    for flying in (None, 0.05):
        write_map(tmp_path / "map.ply", map, format="ply", flying=flying)
        points = read_ply(tmp_path / "map.ply")[1]
        counts.append(len(points))
    assert counts == [20 * 30 - 1, 20 * 27 - 1]
    u = np.rint((K @ np.stack([points[axis] for axis in "xyz"]))[0] / points["z"])
    assert not np.isin(u, (14, 15, 16)).any()
    with pytest.raises(ValueError, match="flying: expected a positive share of the depth, got 0"):
        write_map(tmp_path / "map.ply", map, format="ply", flying=0)


def test_no_point_cloud_without_its_camera(tmp_path: Path) -> None:
    path = tmp_path / "map.ply"
    with pytest.raises(ValueError, match="K: expected the camera matrix, which a point cloud needs, got none"):
        write_map(path, example("metric", K=None), format="ply")
    fractions = np.array([[0.58, 0, 0.5], [0, 1.92, 0.5], [0, 0, 1]])
    with pytest.raises(ValueError, match=r"K: expected focal lengths in pixels of 30x20, got 0.58 and 1.92"):
        write_map(path, example("metric", K=fractions), format="ply")
    assert not path.exists()
    with pytest.warns(UserWarning, match=r"K: the point cloud may be bent: .* another resolution"):
        write_map(path, example("metric", K=K * [[4], [4], [1]]), format="ply")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_map(path, example("metric"), format="ply")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"values": np.zeros((20, 30, 3), np.uint8)}, ValueError, r"values: .* uint8 .*; a coloured picture holds no"),
        ({"values": np.zeros((20, 30, 3))}, ValueError, r"values: .* of shape \(20, 30, 3\); a coloured picture"),
        ({"values": np.zeros((20, 30), np.uint8)}, ValueError, r"values: .* got uint8 of shape"),
        ({"values": np.zeros((20, 30), np.uint16)}, ValueError, r"values: .* got uint16 of shape"),
        ({"values": np.zeros((0, 30))}, ValueError, r"values: expected one map \(H, W\), .* shape \(0, 30\)"),
        ({"unit": None}, ValueError, "unit: expected 'm' for kind 'metric', got None"),
        ({"kind": "depth"}, ValueError, "kind: expected one of metric, relative"),
        ({"K": np.eye(2)}, ValueError, "K: expected .*3x3"),
        ({"K": np.zeros((3, 3))}, ValueError, "K: expected .* with fx, fy > 0"),
        ({"image": np.zeros((30, 20, 3), np.uint8)}, ValueError, r"image: expected uint8 of shape \(20, 30, 3\)"),
        ({"image": torch.zeros(20, 30, 3)}, TypeError, "image: expected a NumPy array, got Tensor"),
    ],
)
def test_what_is_no_map(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DepthMap(**{"values": np.ones(SIZE, np.float32), "kind": "metric", "unit": "m", "K": K} | changes)


def test_what_is_not_written(tmp_path: Path) -> None:
    picture: Any = np.zeros((20, 30, 3), np.uint8)
    for format in MAP_FORMATS:
        with pytest.raises(TypeError, match="map: expected a DepthMap, got ndarray; a coloured picture holds no depth"):
            write_map(tmp_path / "map", picture, format=format)
    with pytest.raises(ValueError, match="format: expected one of png, npy, tiff, ply, got 'exr'"):
        write_map(tmp_path / "map", example("metric"), format="exr")
    with pytest.raises(ValueError, match="scale: expected a positive number, got nan"):
        write_map(tmp_path / "map", example("metric"), format="png", scale=float("nan"))
    assert not list(tmp_path.iterdir())


def test_what_is_not_read(tmp_path: Path) -> None:
    """Files without our metadata, damaged ones, and an array under the metadata of another."""
    for name in ("map.png", "map.npy", "map.tiff"):
        write_map(tmp_path / name, example("metric"), format=name[4:])
    write_png(tmp_path / "colour.png", np.zeros((20, 30, 3), np.uint8))
    np.save(tmp_path / "plain.npy", np.ones(SIZE, np.float32))
    (tmp_path / "other.npy").write_bytes((tmp_path / "plain.npy").read_bytes())
    (tmp_path / "other.npy.json").write_bytes((tmp_path / "map.npy.json").read_bytes())
    Image.fromarray(np.ones(SIZE, np.float32)).save(tmp_path / "plain.tiff", description="depth")
    whole = (tmp_path / "map.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("mdepth_fast")
    for name, message in {
        "colour.png": "expected a map that says its kind and unit, as write_map writes it, got none",
        "plain.npy": "expected a map that says",
        "plain.tiff": "expected a map that says",
        "other.npy": "the array is not the one that its metadata describe",
        "half.png": "cannot be read as an image",
        "text.png": "cannot be read as an image",
        "missing.png": "no such image",
        "missing.npy": "no such file",
    }.items():
        with pytest.raises(DataError, match=rf"{re.escape(str(tmp_path / name))}: .*{message}"):
            read_map(tmp_path / name)
    for before, after in (
        ('"metric"', '"meters"'),
        ('"m"', '"mm"'),
        ('"mdepth_fast": 1', '"mdepth_fast": 2'),
        ("{", ""),
    ):
        text = (tmp_path / "map.npy.json").read_text()
        (tmp_path / "map.npy.json").write_text(text.replace(before, after, 1))
        with pytest.raises(DataError, match=r"map.npy: cannot be read as a map of mdepth-fast"):
            read_map(tmp_path / "map.npy")
        (tmp_path / "map.npy.json").write_text(text)
    assert read_map(tmp_path / "map.npy").unit == "m"
