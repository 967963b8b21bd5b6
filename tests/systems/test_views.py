"""Your own frames as training data: one clip or several."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mdepth_fast.systems.views import DataConfig, evaluation_views, training_views


def write_clip(folder: Path, count: int, value: int) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(np.full((40, 50, 3), value + index, np.uint8)).save(folder / f"{index}.png")


def test_several_clips_are_one_data_set_that_sources_never_leave(tmp_path: Path) -> None:
    above = tmp_path / "clips"
    for name, value in (("b2", 100), ("b10", 200), ("a", 0)):
        write_clip(above / name, 4, value)
        (tmp_path / "depth" / name).mkdir(parents=True)
        for index in range(4):
            depth = Image.fromarray(np.full((40, 50), value + index + 1, np.uint16))
            depth.save(tmp_path / "depth" / name / f"{index}.png")
    (above / "notes").mkdir()
    (above / "K.txt").write_text("40 0 24.5\n0 40 19.5\n0 0 1\n")

    def config(root: Any, **changes: Any) -> DataConfig:
        return DataConfig(name="folder", root=root, height=32, width=32, **changes)

    every = [str(above / name) for name in ("a", "b2", "b10")]
    for root, values in (
        (str(above), [0, 100, 200]),
        (str(above / "b*"), [100, 200]),
        (every, [0, 100, 200]),
        ([every[2], str(above / "b2")], [200, 100]),
        (every[1], [100]),
    ):
        given = {} if root != every[1] else {"intrinsics": str(above / "K.txt")}
        data = training_views(config(root, **given), 0)
        assert len(data) == 2 * len(values)
        for index, value in enumerate(np.repeat(values, 2)):
            sample = data[index]
            target = int(sample["target"][0, 0, 0])
            assert target == value + 1 + index % 2
            assert [int(source[0, 0, 0]) for source in sample["sources"]] == [target - 1, target + 1]
    held_out = evaluation_views(config(str(above), depth=str(tmp_path / "depth")), 0)
    assert len(held_out) == 12
    for sample in held_out:
        assert sample["depth"].max() * 1000 == pytest.approx(int(sample["target"][0, 0, 0]) + 1)

    for change, message in (
        ({"root": str(above / "x*")}, r"data\.root: no folder is matched by .*x\*"),
        ({"root": []}, r"data\.root: expected at least one folder"),
        ({"root": [*every, str(above / "none")]}, r"data\.root: no such folder: .*none"),
        ({"root": str(above), "poses": "poses.txt"}, r"data\.poses: expected one clip, .* got 3"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            training_views(config(**change), 0)
    write_clip(tmp_path / "more" / "a", 4, 50)
    twice = config([every[0], str(tmp_path / "more" / "a")], depth=str(tmp_path / "depth"))
    with pytest.raises(ValueError, match=r"data\.root: expected clips of different names"):
        evaluation_views(twice, 0)
    (above / "K.txt").rename(above / "a" / "K.txt")
    (above / "b2" / "K.txt").write_text("50 0 24.5\n0 50 19.5\n0 0 1\n")
    with pytest.raises(ValueError, match=r"data\.intrinsics: expected one camera for all clips"):
        training_views(config(str(above)), 0)
    # The odd one is named before anything is trained, and not the first of those that it differs from.
    Image.fromarray(np.zeros((50, 40, 3), np.uint8)).save(above / "a" / "0.png")
    with pytest.raises(
        ValueError, match=r"a/0\.png: expected the size of the other frames of its clip, 50x40 .* 40x50"
    ):
        training_views(config(every[0]), 0)
    assert len(training_views(config(every[0], skip_bad=True), 0)) == 2
