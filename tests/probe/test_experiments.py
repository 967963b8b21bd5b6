"""Networks whose sight is known, under the experiments: each regression must say what they look at."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from mdepth_fast.probe import Obstacle, Setting, draw_examples, draw_report, probe, read_obstacle, summary, write_report
from mdepth_fast.probe.experiments import fit_plane
from mdepth_fast.probe.stimuli import Box, car_from_behind, false_colours, grey, insert, roll, roll_size

HEIGHT, WIDTH, HORIZON = 120, 200, 40.0
BLUE = Obstacle(np.broadcast_to([0.0, 0.0, 1.0, 1.0], (30, 40, 4)).copy())
SETTING = Setting(
    focal=100.0, centre=(99.5, HORIZON), camera_height=1.5, obstacle_width=1.0, obstacle=BLUE, pitch=10, roll=8.0
)


def road_frame() -> np.ndarray:
    """A road whose red says its inverse depth, 0 at the horizon; above is black."""
    frame = np.zeros((HEIGHT, WIDTH, 3))
    frame[..., 0] = np.maximum(0, np.arange(HEIGHT) - HORIZON)[:, None] / 100
    return frame


def sees_red(frame):
    return frame[..., 0].copy()


def knows_rows(frame):
    """Looks at nothing: the same road in every frame."""
    return np.repeat(np.maximum(1e-3, np.arange(len(frame)) - HORIZON)[:, None] / 100, frame.shape[1], 1)


def finds_blue(by):
    def predict(frame):
        inverse = sees_red(frame)
        blue = frame[..., 2] > 0.5
        if blue.any():
            rows, columns = np.nonzero(blue)
            inverse[blue] = (rows.max() + 1 - HORIZON) / 100 if by == "row" else (np.ptp(columns) + 1) / 100
        return inverse

    return predict


def run(predict, experiment, setting=SETTING):
    report = probe(predict, [("a", road_frame()), ("b", road_frame())], setting, [experiment])
    return report["experiments"][experiment]


@pytest.mark.parametrize(("by", "position", "size"), [("row", 1.0, 0.0), ("width", 0.0, 1.0)])
def test_position_and_size_are_told_apart(by, position, size):
    found = run(finds_blue(by), "position_and_size")["conditions"]
    slope = {name: values["log_slope"]["slope"] for name, values in found.items()}
    assert slope["position only"] == pytest.approx(position, abs=0.02)
    assert slope["size only"] == pytest.approx(size, abs=0.04)
    assert slope["position and size"] == pytest.approx(1.0, abs=0.06)
    assert found["position only"]["mean"][-1] == pytest.approx(3.0 if position else 1.0, rel=0.05)


@pytest.mark.parametrize(("predict", "slope"), [(sees_red, 1.0), (knows_rows, 0.0)])
def test_the_pitch_of_the_camera(predict, slope):
    found = run(predict, "pitch")
    assert found["horizon"]["slope"] == pytest.approx(slope, abs=1e-3)
    if predict is sees_red:
        pair = found["pairs"][0]
        assert pair["predicted_horizon"] == pytest.approx(pair["horizon"], abs=0.02)


def test_an_obstacle_moves_with_the_crop_for_a_network_that_knows_rows():
    found = run(knows_rows, "pitch")["log_distance_per_pixel"]
    # The horizon is cropped up: the obstacle is in a higher row, which that network takes for farther.
    assert found["slope"] < -0.02
    assert abs(run(finds_blue("width"), "pitch")["log_distance_per_pixel"]["slope"]) < 1e-9


@pytest.mark.parametrize(("predict", "slope"), [(sees_red, 1.0), (knows_rows, 0.0)])
def test_the_roll_of_the_camera(predict, slope):
    found = run(predict, "roll")
    assert found["slope"]["slope"] == pytest.approx(slope, abs=0.02)
    assert found["slope"]["interval"] == pytest.approx([slope, slope], abs=0.02)


def test_what_a_network_must_see_to_see_an_obstacle():
    def sees_shadows(frame):
        """An obstacle where the road under it is dark, nothing else."""
        inverse = np.repeat(np.maximum(1e-3, np.arange(len(frame)) - HORIZON)[:, None] / 100, frame.shape[1], 1)
        dark = frame[..., 0].max(1) - frame[..., 0].min(1) > 0.1
        contact = round(HORIZON + SETTING.below(HEIGHT))
        if dark[contact + 1] and frame[contact + 1, 100, 0] < 0.15:
            inverse[contact - 14 : contact, 80:120] = (contact - HORIZON) / 100
        return inverse

    found = run(sees_shadows, "obstacle")["variants"]
    assert found["as it is"]["visibility"] == pytest.approx(1.0, abs=0.05)
    assert found["as it is"]["detected"] == 1.0
    assert found["without a shadow"]["visibility"] == pytest.approx(0.0, abs=0.05)
    assert found["without a shadow"]["detected"] == 0.0


def test_colour():
    found = run(sees_red, "colour")["abs_rel_to_original"]
    assert found["grey"]["mean"] == pytest.approx(0.0, abs=1e-3)  # a constant factor is aligned
    assert run(knows_rows, "colour")["abs_rel_to_original"]["low contrast"]["mean"] == pytest.approx(0.0, abs=1e-12)
    assert found["low contrast"]["mean"] > 0.1


def test_inverse_depth_up_to_a_shift_is_anchored_at_the_horizon():
    affine = Setting(**{**vars(SETTING), "inverse": "affine"})
    found = run(lambda frame: 7.0 + 3 * finds_blue("row")(frame), "position_and_size", affine)
    assert found["conditions"]["position only"]["log_slope"]["slope"] == pytest.approx(1.0, abs=0.03)
    assert run(lambda frame: 7.0 + 3 * sees_red(frame), "pitch", affine)["horizon"] is None


def test_an_obstacle_stands_where_it_is_put():
    frame = np.full((100, 160, 3), 0.5)
    out, box = insert(frame, BLUE, contact=80, column=79.5, width=20, shadow=False)
    assert box == Box(65, 80, 70, 90)
    assert (out[65:80, 70:90] == [0, 0, 1]).all()
    out[65:80, 70:90] = 0.5
    assert (out == frame).all()
    shaded, _ = insert(frame, BLUE, contact=80, column=79.5, width=20)
    assert shaded[81, 79].max() < 0.2 and shaded[95, 79].min() == 0.5
    rim, _ = insert(frame, BLUE, contact=80, column=79.5, width=40, shadow=False, outline=True)
    assert (rim[65, 79] == 0.5).all() and (rim[79, 79] == [0, 0, 1]).all()
    with pytest.raises(ValueError, match="room for an obstacle"):
        insert(frame, BLUE, contact=5, column=79.5, width=20)


def test_edits_of_frames():
    rng = np.random.default_rng(0)
    frame = rng.uniform(0.1, 0.5, (90, 130, 3))
    assert grey(false_colours(frame)) == pytest.approx(grey(frame), abs=1e-6)
    assert roll(frame, 0.0, (90, 130)) == pytest.approx(frame, abs=1e-6)
    for degrees in (-12.0, 7.0):
        size = roll_size(90, 130, degrees)
        assert roll(np.ones((90, 130, 3)), degrees, size).min() == pytest.approx(1.0)  # nothing from outside
    v, u = np.mgrid[0:90, 0:130]
    plane = np.repeat((0.5 + 0.003 * (v - 44.5))[..., None], 3, 2)
    size = roll_size(90, 130, 10.0)
    turned = roll(plane, 10.0, size)[..., 0]
    v, u = np.mgrid[0 : size[0], 0 : size[1]]
    a, b, _ = fit_plane(u.ravel(), v.ravel(), turned.ravel())
    assert math.degrees(math.atan2(-a, b)) == pytest.approx(10.0, abs=0.05)  # clockwise
    assert math.hypot(a, b) == pytest.approx(0.003, rel=1e-3)
    car = car_from_behind().rgba
    assert car.shape == (240, 300, 4) and 0.5 < car[..., 3].mean() < 0.9 and (car[-2:, :, 3].max() == 1)


def test_a_robust_plane_passes_by_a_car():
    v, u = np.mgrid[0:40, 0:60]
    values = 0.5 * v + 0.1 * u + 3
    values[10:18, 20:30] += 30
    assert fit_plane(u.ravel(), v.ravel(), values.ravel()) == pytest.approx((0.1, 0.5, 3), abs=0.02)


def test_the_report_on_disk(tmp_path):
    report = probe(lambda frame: np.full(frame.shape[:2], np.nan), [("a", road_frame())], SETTING)
    write_report(tmp_path / "report.json", report)
    assert json.loads((tmp_path / "report.json").read_text())["experiments"]["roll"]["slope"]["slope"] is None
    report = probe(finds_blue("row"), [("a", road_frame())], SETTING)
    write_report(tmp_path / "report.json", report)
    assert json.loads((tmp_path / "report.json").read_text())["experiments"]["pitch"]["horizon"]["slope"] == (
        pytest.approx(1.0, abs=1e-3)
    )
    draw_report(tmp_path / "report.png", report)
    draw_examples(tmp_path / "examples.png", road_frame(), sees_red, SETTING)
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in ("report", "examples"))
    assert "shift of the horizon" in summary(report) and "nan" not in summary(report)
    assert "-   ideal" not in summary(report)


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="frames: expected at least one"):
        probe(sees_red, [], SETTING)
    with pytest.raises(ValueError, match="experiments: expected some of"):
        probe(sees_red, [("a", road_frame())], SETTING, ["pich"])
    with pytest.raises(ValueError, match="a: expected a frame"):
        probe(sees_red, [("a", np.zeros((10, 10, 3)))], SETTING)
    with pytest.raises(ValueError, match="K must be in pixels of these frames"):
        probe(sees_red, [("a", road_frame())], Setting(focal=700, centre=(600, 170)))
    with pytest.raises(ValueError, match="predict: expected inverse depth"):
        probe(lambda frame: frame, [("a", road_frame())], SETTING)
    with pytest.raises(ValueError, match="pitch: expected at most a quarter of the frame's"):
        probe(lambda frame: frame[..., 0], [("a", road_frame())], replace(SETTING, pitch=90), ["pitch"])
    with pytest.raises(ValueError, match="distance: expected less than 150 m, where the obstacle stands a pixel below"):
        probe(lambda frame: frame[..., 0], [("a", road_frame())], replace(SETTING, distance=1e9), ["pitch"])
    with pytest.raises(ValueError, match="roll: expected less than 45"):
        Setting(focal=100, centre=(1, 1), roll=60)
    (tmp_path / "x.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"x\.png: cannot be read"):
        read_obstacle(tmp_path / "x.png")
