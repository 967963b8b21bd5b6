"""What the page of `mdepth-fast demo` gets for an image, and says of one that it cannot take."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mdepth_fast.data.intrinsics import intrinsics_from_view
from mdepth_fast.inference import DepthMap, point_cloud, read_map, write_glb
from mdepth_fast.inference.demo import Demo, bind
from mdepth_fast.kinds import UNITS, Kind
from mdepth_fast.models import DepthModel


class Ramp(DepthModel):
    """Values that grow from left to right, 1 to 3."""

    def __init__(self, kind: Kind) -> None:
        super().__init__(unit=UNITS[kind], input_size=None)
        self.weight, self._kind = nn.Parameter(torch.ones(1)), kind

    @property
    def kind(self) -> Kind:
        return self._kind

    def infer(self, images: torch.Tensor) -> torch.Tensor:
        return torch.linspace(1, 3, images.shape[-1]).expand_as(images[:, :1])


@pytest.fixture
def demo(tmp_path: Path) -> Demo:
    return Demo({kind: Ramp(kind) for kind in UNITS}, tmp_path / "page", pixels=10_000)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """As a phone writes it: 40 x 60 pixels that are to be turned."""
    path, exif = tmp_path / "photo.jpg", Image.Exif()
    exif[274] = 6
    Image.fromarray(np.full((60, 40, 3), 90, np.uint8)).save(path, exif=exif)
    return path


@pytest.mark.parametrize("kind", UNITS)
def test_every_kind_has_its_files(kind: Kind, demo: Demo, photo: Path) -> None:
    """Maps hold what the network predicts; a point cloud is of depth alone."""
    shown = demo.predict(photo, kind)
    assert shown.image.shape == shown.colors.shape == (40, 60, 3)
    files = {path.name.partition(".")[2]: path for path in shown.files}
    for suffix in ("png", "npy"):
        map = read_map(files[suffix])
        assert map.kind == kind and map.K is not None
        np.testing.assert_allclose(map.values[0], np.linspace(1, 3, 60), atol=0.02)
    depth = kind in ("metric", "relative")
    assert (shown.cloud is not None) == ("ply" in files) == depth
    assert ("**assumed**, 60 degrees" in shown.text) == depth
    assert ("No point cloud" in shown.text) != depth


def test_the_camera_that_is_known_goes_first(demo: Demo, photo: Path) -> None:
    shown = demo.predict(photo, "metric", 90, "50, 51, 29.5, 19.5")
    K = read_map(shown.files[1]).K
    assert K is not None and K[0, 0] == 50 and K[1, 1] == 51 and "assumed" not in shown.text
    assert "may be wrong" in demo.predict(photo, "metric", 90, "5000 5000 29.5 19.5").text
    with pytest.raises(ValueError, match="camera: expected fx, fy, cx, cy in pixels, got '/etc/passwd'"):
        demo.predict(photo, "metric", 60, "/etc/passwd")
    with pytest.raises(ValueError, match="angle of view: expected 1 to 170 degrees, got 180"):
        demo.predict(photo, "metric", 180)


def test_an_angle_of_view_reaches_the_edges() -> None:
    K = intrinsics_from_view(90, 40, 60)
    # Pixel 0 begins at -0.5, half a width left of the axis, which is where the ray of 45 degrees goes.
    np.testing.assert_allclose(np.linalg.inv(K) @ [-0.5, 19.5, 1], [-1, 0, 1], atol=1e-12)


def test_what_is_no_picture_is_said_in_one_line(demo: Demo, photo: Path, tmp_path: Path) -> None:
    Image.new("L", (101, 100)).save(tmp_path / "large.png")
    (tmp_path / "text.heic").write_text("none")
    content = photo.read_bytes()
    (tmp_path / "half.jpg").write_bytes(content[: len(content) // 2])
    for name, text in {
        "large.png": r"image: expected at most 0.01 million pixels, got 101 x 100",
        "text.heic": r"image: expected a picture such as JPEG or PNG, this file cannot be read as one",
        "half.jpg": r"image: expected a picture such as JPEG or PNG, this file cannot be read as one",
    }.items():
        with pytest.raises(ValueError, match=f"^{text}$"):
            demo.predict(tmp_path / name, "metric")
    with pytest.raises(ValueError, match=r"model: expected one of .*, got 'x'"):
        demo.predict(photo, "x")


def test_old_files_go(demo: Demo, photo: Path) -> None:
    shown = [demo.predict(photo, "metric") for _ in range(10)]
    assert [one.files[0].exists() for one in shown] == [False] * 2 + [True] * 8


def test_a_glb_holds_points_and_colours(tmp_path: Path) -> None:
    """Read back by the specification of glTF 2.0: chunks, accessors; y up, z backward; colours in linear light."""
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    map = DepthMap(np.full((4, 5), 2, np.float32), "metric", "m", intrinsics_from_view(60, 4, 5), image)
    points, colours = point_cloud(map)
    assert colours is not None
    write_glb(tmp_path / "a.glb", points, colours)
    content = (tmp_path / "a.glb").read_bytes()
    magic, version, length, size, kind = struct.unpack("<4sIII4s", content[:20])
    assert (magic, version, length, kind) == (b"glTF", 2, len(content), b"JSON") and size % 4 == 0
    about, body = json.loads(content[20 : 20 + size]), content[28 + size :]
    assert struct.unpack("<I4s", content[20 + size : 28 + size]) == (len(body), b"BIN\0")
    start = about["bufferViews"][1]["byteOffset"]
    np.testing.assert_allclose(np.frombuffer(body[:start], "<f4").reshape(-1, 3), points * [1, -1, -1], rtol=1e-6)
    light = np.frombuffer(body[start:], "<u2").reshape(-1, 4)[:, :3] / 65535
    np.testing.assert_allclose(255 * light ** (1 / 2.2), colours, atol=0.5)
    with pytest.raises(ValueError, match="points: expected at least one"):
        write_glb(tmp_path / "b.glb", points[:0], colours[:0])
    chosen = point_cloud(map, most=7)[0]
    assert len(chosen) == 7 and {*map_tuple(chosen)} < {*map_tuple(points)}


def map_tuple(points: np.ndarray) -> list[tuple[float, ...]]:
    return [tuple(point) for point in points.tolist()]


def test_a_port_in_use_is_said_in_one_line() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(OSError, match=f"^--port: {port} is in use on 127.0.0.1, give another one$"):
            bind("127.0.0.1", port)
    with pytest.raises(OSError, match="--host: cannot use 'no such host'"):
        bind("no such host", 0)
