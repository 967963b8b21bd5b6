"""The report on a folder: motion that is known, and every fault that it names."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from mdepth_fast.cli import main
from mdepth_fast.data import DataError
from mdepth_fast.data.check import check_folder, image_motion, thumbnail

WIDTH, HEIGHT = 320, 128
K = f"300 0 {(WIDTH - 1) / 2}\n0 300 {(HEIGHT - 1) / 2}\n0 0 1\n"


@pytest.fixture(scope="module")
def scenery() -> Image.Image:
    """A texture to look at, wider and higher than a frame."""
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT + 80, WIDTH + 400, 3), dtype=np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2))


def write(folder: Path, scenery: Image.Image, places: list[float], light: dict[int, float] | None = None) -> Path:
    """Frames of a camera that looks at x = places."""
    folder.mkdir()
    for number, x in enumerate(places):
        frame = scenery.transform(
            (WIDTH, HEIGHT), Image.Transform.AFFINE, (1, 0, x, 0, 1, 20), Image.Resampling.BICUBIC
        )
        pixels = np.asarray(frame).astype(float) * (light or {}).get(number, 1.0)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    (folder / "K.txt").write_text(K)
    return folder


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0, 4.5, 20.0])
def test_motion_is_measured_in_fractions_of_a_pixel(scenery: Image.Image, tmp_path: Path, shift: float) -> None:
    folder = write(tmp_path / "frames", scenery, [10, 10 + shift])
    one, other = (thumbnail(np.asarray(Image.open(folder / f"{i}.png"))) for i in (0, 1))
    assert (image_motion(one, other) or 0) * WIDTH == pytest.approx(shift, abs=0.15)
    assert (image_motion(one, 0.6 * other + 20) or 0) * WIDTH == pytest.approx(shift, abs=0.15)  # another exposure


def test_nothing_matches_without_texture_or_overlap(scenery: Image.Image, tmp_path: Path) -> None:
    grey = np.full((128, 320), 80, np.float32)
    assert image_motion(grey, grey) is None
    folder = write(tmp_path / "frames", scenery, [0, 300])
    one, other = (thumbnail(np.asarray(Image.open(folder / f"{i}.png"))) for i in (0, 1))
    assert image_motion(one, other) is None


def test_a_good_folder(scenery: Image.Image, tmp_path: Path) -> None:
    report = check_folder(write(tmp_path / "frames", scenery, [2.0 * i for i in range(6)]))
    assert report.problems == [] and report.table().endswith("no problems found")
    assert report.frames == 6 and report.sizes == {"320x128": 6} and report.pairs == 5
    assert report.motion == pytest.approx(2 / WIDTH, rel=0.05) and report.suggested_sources == [-1, 1]
    assert report.static == 0 and not (report.duplicates or report.exposure_jumps or report.cuts or report.unreadable)
    assert json.loads(json.dumps(report.to_dict()))["intrinsics"][0][0] == 300


def test_slow_motion_takes_distant_sources(scenery: Image.Image, tmp_path: Path) -> None:
    report = check_folder(write(tmp_path / "frames", scenery, [0.3 * i for i in range(12)]))
    assert report.suggested_sources is not None
    offset = report.suggested_sources[1]
    assert 2 <= offset <= 4 and report.suggested_sources == [-offset, offset]
    assert report.motion_at_suggested == pytest.approx(0.3 * offset / WIDTH, rel=0.25)
    assert f"--data.sources=[-{offset},{offset}]" in report.table()


def test_every_fault_is_named(scenery: Image.Image, tmp_path: Path) -> None:
    places = [0.0, 3, 3, 3, 6, 9, 320, 323]
    folder = write(tmp_path / "frames", scenery, places, light={5: 0.6})
    (folder / "8.png").write_bytes((folder / "7.png").read_bytes()[:1000])
    Image.fromarray(np.zeros((HEIGHT, WIDTH - 2, 3), np.uint8)).save(folder / "9.png")
    (folder / "K.txt").write_text("0.9 0 0.5\n0 0.9 0.5\n0 0 1\n")
    report = check_folder(folder)
    assert report.duplicates == ["1.png 2.png", "2.png 3.png"] and report.static == 2
    assert report.exposure_jumps == ["4.png 5.png", "5.png 6.png"]
    assert report.cuts == ["5.png 6.png"]
    assert len(report.unreadable) == 1 and "8.png" in report.unreadable[0]
    assert report.sizes == {"320x128": 8, "318x128": 1}
    text = "\n".join(report.problems)
    for words in (
        "1 files cannot be read",
        "frames of several sizes",
        "2 of 7 pairs are static",
        "2 jumps in exposure",
        "look like fractions of the image",
    ):
        assert words in text
    (folder / "K.txt").unlink()
    assert any("no camera matrix" in problem for problem in check_folder(folder).problems)


def test_too_fast_and_out_of_order(scenery: Image.Image, tmp_path: Path) -> None:
    fast = check_folder(write(tmp_path / "fast", scenery, [28.0 * i for i in range(5)]))
    assert any("neighbours are far apart" in problem for problem in fast.problems)
    mixed = check_folder(write(tmp_path / "mixed", scenery, [0.0, 200, 400, 100, 300]))
    assert len(mixed.cuts) == 4 and mixed.motion is None and mixed.suggested_sources is None
    assert any("4 of 4 neighbours do not match" in problem for problem in mixed.problems)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected image files, got none"):
        check_folder(tmp_path)
    with pytest.raises(DataError, match="cannot list the folder"):
        check_folder(tmp_path / "none")


def test_real_frames(real_data: Path) -> None:
    folder = real_data / "indoor_rgbd"
    report = check_folder(folder / "images", folder / "K.txt")
    assert report.problems == [] and report.static == 0 and report.suggested_sources == [-1, 1]
    drive = real_data / "kitti_raw/2011_09_26/2011_09_26_drive_0052_sync/image_02/data"
    assert check_folder(drive).suggested_sources == [-1, 1]  # as published


def test_what_measured_depth_holds(scenery: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "frames", scenery, [10, 13])
    (tmp_path / "depth").mkdir()
    for number, values in enumerate(([[0, 1000], [3000, 65535]], [[2000, 2000], [2000, 65535]])):
        Image.fromarray(np.array(values, np.uint16)).save(tmp_path / "depth" / f"{number}.png")
    arguments = ["data", "check", str(folder), "--depth", str(tmp_path / "depth"), "--invalid-value", "65535"]
    assert main(arguments) == 0
    assert "depth: 2 maps, 1 to 3 m, median 2 m, 62.5% of the pixels measured" in capsys.readouterr().out
