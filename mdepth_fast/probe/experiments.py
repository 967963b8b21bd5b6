"""The experiments of van Dijk and de Croon, "How do neural networks see depth in single images?" (ICCV 2019).

The network is a black box: it sees edited frames, and its depth is read at known places. Every experiment ends in
regressions whose ideal slope is known, with 95 % intervals from resampling the frames.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mdepth_fast.probe import stimuli
from mdepth_fast.probe.stimuli import Box, Obstacle, car_from_behind, insert

__all__ = ["EXPERIMENTS", "Setting", "fit_line", "fit_plane", "probe"]

Array = NDArray[Any]
Predict = Callable[[Array], Array]
"""A frame (H,W,3) in [0, 1] to inverse depth (H,W), larger is nearer."""

_RESAMPLED = 1000


@dataclass(frozen=True)
class Setting:
    """The scene that the experiments assume: a flat road, seen by a level camera.

    Args:
        focal: focal length in pixels of the frames.
        centre: principal point (cx, cy) in pixels of the frames.
        horizon: row of the horizon; None for cy, which a level camera has.
        camera_height: height of the camera above the road, in metres.
        obstacle_width: width of the obstacle, in metres. The obstacle's picture gives its height.
        obstacle: its picture.
        distance: distance at which the obstacle stands first, in metres; None: a third of the way from the horizon to
            the lower edge of the frame.
        pitch: largest shift of the crop up and down, in pixels.
        roll: largest roll, in degrees.
        inverse: what the network predicts: depth, whose inverse is 0 at the horizon, or inverse depth up to a scale and
            a shift ("affine"). The shift is taken from the road: 0 at the horizon.
    """

    focal: float
    centre: tuple[float, float]
    horizon: float | None = None
    camera_height: float = 1.65
    obstacle_width: float = 1.8
    obstacle: Obstacle = field(default_factory=car_from_behind)
    distance: float | None = None
    pitch: int = 30
    roll: float = 10.0
    inverse: Literal["depth", "affine"] = "depth"

    def __post_init__(self) -> None:
        for name in ("focal", "camera_height", "obstacle_width", "pitch", "roll"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: expected a positive number, got {value}")
        if self.distance is not None and not (math.isfinite(self.distance) and self.distance > 0):
            raise ValueError(f"distance: expected a positive number of metres, got {self.distance}")
        if self.roll >= 45:
            raise ValueError(f"roll: expected less than 45 degrees, got {self.roll}")

    def row(self) -> float:
        """The row of the horizon."""
        return self.centre[1] if self.horizon is None else self.horizon

    def below(self, height: int) -> float:
        """Rows from the horizon down to the place of the obstacle, in a frame of `height` rows."""
        if self.distance is None:
            return (height - 1 - self.row()) / 3
        rows = self.focal * self.camera_height / self.distance
        if rows < 1:
            raise ValueError(
                f"distance: expected less than {self.focal * self.camera_height:.4g} m, where the obstacle stands a "
                f"pixel below the horizon, got {self.distance:g}"
            )
        return rows


def probe(
    predict: Predict,
    frames: Iterable[tuple[str, Array]],
    setting: Setting,
    experiments: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Runs experiments on frames and returns a report of plain numbers, lists and dicts.

    Args:
        predict: the network, see `Predict`.
        frames: names and frames, (H,W,3) in [0, 1], H and W at least 64.
        setting: camera and obstacle.
        experiments: names out of `EXPERIMENTS`; None for all.

    Raises:
        ValueError: no frame, an unknown experiment, a frame without a road below the horizon or without room for the
            obstacle, or a prediction of another size.
    """
    names = list(EXPERIMENTS) if experiments is None else list(experiments)
    for name in names:
        if name not in EXPERIMENTS:
            raise ValueError(f"experiments: expected some of {', '.join(EXPERIMENTS)}, got {name!r}")
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    seen: list[str] = []
    for label, frame in frames:
        subject = _Subject(predict, frame, setting, label)
        seen.append(label)
        for name in names:
            measured[name].append(EXPERIMENTS[name].measure(subject))
    if not seen:
        raise ValueError("frames: expected at least one, got none")
    return {
        "source": "van Dijk and de Croon, ICCV 2019, arXiv 1905.07005",
        "frames": seen,
        "experiments": {name: EXPERIMENTS[name].report(measured[name]) for name in names},
    }


class _Subject:
    """A frame, what the network says of it, and where its road lies."""

    def __init__(self, predict: Predict, frame: Array, setting: Setting, name: str) -> None:
        if frame.ndim != 3 or frame.shape[2] != 3 or min(frame.shape[:2]) < 64:
            raise ValueError(f"{name}: expected a frame (H,W,3) of at least 64x64, got {frame.shape}")
        self.name, self.frame, self.setting = name, np.asarray(frame, np.float64), setting
        self.horizon, self.column = setting.row(), setting.centre[0]
        height, width = frame.shape[:2]
        if not 0 <= self.horizon < 0.9 * height or not 0 <= self.column < width:
            raise ValueError(
                f"{name}: expected horizon and principal point inside a frame of {height}x{width} with road below, got "
                f"row {self.horizon:.0f} and column {self.column:.0f}; K must be in pixels of these frames"
            )
        self._predict, self._shift = predict, 0.0
        self.affine = setting.inverse == "affine"
        raw = self.inverse(self.frame)
        self.road = _road(height, width, self.horizon, self.column)
        if self.affine:
            rows, _ = np.nonzero(self.road)
            _, self._shift = fit_line(rows - self.horizon, raw[self.road])
            raw = raw - self._shift
        self.plain = raw

    def inverse(self, frame: Array) -> Array:
        """Inverse depth of an edit of this frame, 0 infinitely far."""
        values = np.asarray(self._predict(frame), np.float64)
        if values.shape != frame.shape[:2]:
            raise ValueError(f"predict: expected inverse depth of shape {frame.shape[:2]}, got {values.shape}")
        return values - self._shift

    def stand(self, below: float, width: float) -> tuple[int, int]:
        """Contact row and width in whole pixels."""
        return round(self.horizon + below), max(4, round(width))

    def first(self) -> tuple[float, float]:
        """Rows below the horizon and width of the obstacle at its first place."""
        below = self.setting.below(self.frame.shape[0])
        return below, below * self.setting.obstacle_width / self.setting.camera_height


def _road(height: int, width: int, horizon: float, column: float) -> NDArray[np.bool_]:
    """A triangle from the vanishing point to the middle 60 % of the lower edge, without its farthest fifth."""
    v, u = np.mgrid[0:height, 0:width]
    reach = (v - horizon) / max(1.0, height - 1 - horizon)
    return np.asarray((reach > 0.2) & (np.abs(u - column) < 0.3 * width * reach))


def fit_plane(columns: Array, rows: Array, values: Array) -> tuple[float, float, float]:
    """a, b, c of values ~ a columns + b rows + c, by least squares with Huber weights: cars on the road count little.

    NaN where fewer than 3 values are finite.
    """
    finite = np.isfinite(values)
    if finite.sum() < 3:
        return math.nan, math.nan, math.nan
    columns, rows, values = columns[finite], rows[finite], values[finite]
    design = np.stack([columns, rows, np.ones(len(values))], 1).astype(np.float64)
    weights = np.ones(len(values))
    scale = design.std(0)
    scale[2] = 1.0
    scale[scale == 0] = 1.0
    for _ in range(20):
        root = np.sqrt(weights)[:, None]
        solution = np.linalg.lstsq(design / scale * root, values * root[:, 0], rcond=None)[0]
        residual = np.abs(values - design / scale @ solution)
        spread = 1.4826 * np.median(residual)
        weights = 1 / np.maximum(1.0, residual / max(1.345 * spread, 1e-300))
    a, b, c = solution / scale
    return float(a), float(b), float(c)


def fit_line(x: Array, y: Array) -> tuple[float, float]:
    """Slope and intercept of y over x, robust as `fit_plane`."""
    _, slope, intercept = fit_plane(np.zeros(len(x)), x, y)
    return slope, intercept


class _Experiment:
    """What is done to each frame, and what is said of all."""

    about: str = ""

    def measure(self, subject: _Subject) -> dict[str, Any]:
        raise NotImplementedError

    def report(self, measured: list[dict[str, Any]]) -> dict[str, Any]:
        raise NotImplementedError


def _level(inverse: Array, box: Box) -> float:
    """Inverse depth of an obstacle: the median of its middle."""
    return float(np.median(inverse[box.inside]))


def _regression(series: Sequence[tuple[Any, Any]], ideal: float, *, through_origin: bool = False) -> dict[str, Any]:
    """Least-squares slope over the pairs of all frames, correlation, and an interval from resampling the frames."""

    def solve(picked: Iterable[int]) -> tuple[float, float]:
        x = np.concatenate([np.asarray(series[i][0], float) for i in picked])
        y = np.concatenate([np.asarray(series[i][1], float) for i in picked])
        finite = np.isfinite(x) & np.isfinite(y)
        x, y = x[finite], y[finite]
        if len(x) < 2 or np.ptp(x) == 0:
            return math.nan, math.nan
        if through_origin:
            slope = float((x * y).sum() / (x * x).sum())
        else:
            slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
        correlation = float(np.corrcoef(x, y)[0, 1]) if np.ptp(y) > 0 else math.nan
        return slope, correlation

    slope, correlation = solve(range(len(series)))
    interval: list[float] | None = None
    if len(series) > 1:
        rng = np.random.default_rng(0)
        drawn = [solve(rng.integers(0, len(series), len(series)))[0] for _ in range(_RESAMPLED)]
        interval = (
            [float(value) for value in np.nanpercentile(drawn, [2.5, 97.5])] if np.isfinite(drawn).any() else None
        )
    return {"slope": slope, "ideal": ideal, "r": correlation, "interval": interval, "frames": len(series)}


class _PositionAndSize(_Experiment):
    about = "an obstacle moves away: does the network follow its place in the image, or its size?"
    distances = tuple(round(1 + 0.1 * step, 1) for step in range(21))
    conditions = ("position and size", "position only", "size only")

    def measure(self, subject: _Subject) -> dict[str, Any]:
        below, width = subject.first()
        row = {}
        for condition in self.conditions:
            truth, seen, first = [], [], None
            for distance in self.distances:
                place = below / distance if condition != "size only" else below
                size = width / distance if condition != "position only" else width
                contact, pixels = subject.stand(place, size)
                frame, box = insert(subject.frame, subject.setting.obstacle, contact, subject.column, pixels)
                level = _level(subject.inverse(frame), box)
                if first is None:
                    first = (contact, pixels, level)
                # Whole pixels: the distance that the edit really shows.
                moved = (first[0] - subject.horizon) / (contact - subject.horizon)
                shrunk = first[1] / pixels
                truth.append(shrunk if condition == "size only" else moved)
                seen.append(first[2] / level if level > 0 and first[2] > 0 else math.nan)
            row[condition] = {"distance": truth, "predicted": seen}
        return row

    def report(self, measured: list[dict[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {"about": self.about, "distances": list(self.distances), "conditions": {}}
        for condition in self.conditions:
            rows = [frame[condition] for frame in measured]
            predicted = np.array([row["predicted"] for row in rows], float)
            logs = [(np.log(row["distance"]), np.log(row["predicted"])) for row in rows]
            out["conditions"][condition] = {
                "mean": _mean(predicted),
                "std": _std(predicted),
                # 1: the distance follows the cue as it should; 0: the cue does nothing.
                "log_slope": _regression(logs, 1.0, through_origin=True),
            }
        return out


class _Pitch(_Experiment):
    about = "the same frame cropped higher and lower: does the network find the horizon, or read the row as it is?"
    steps = 7

    def measure(self, subject: _Subject) -> dict[str, Any]:
        height, width = subject.frame.shape[:2]
        reach = subject.setting.pitch
        if reach > height // 4:
            raise ValueError(
                f"pitch: expected at most a quarter of the frame's {height} rows, {height // 4}, got {reach}"
            )
        below, size = subject.first()
        contact, pixels = subject.stand(below, size)
        edited, box = insert(subject.frame, subject.setting.obstacle, contact, subject.column, pixels)
        shifts, horizons, levels = [], [], []
        for shift in np.unique(np.linspace(-reach, reach, self.steps).round().astype(int)):
            top = reach + int(shift)
            rows = height - 2 * reach
            inverse = subject.inverse(stimuli.crop_rows(subject.frame, top, rows))
            road = _road(height, width, subject.horizon, subject.column)[top : top + rows]
            v, _ = np.nonzero(road)
            slope, offset = fit_line(v, inverse[road])
            shifts.append(float(subject.horizon - top))
            # Road that does not get nearer downwards has no horizon.
            horizons.append(-offset / slope if slope > 0 else math.nan)
            cropped = subject.inverse(stimuli.crop_rows(edited, top, rows))
            bottom = min(box.bottom - top, rows)
            levels.append(_level(cropped, Box(max(0, box.top - top), bottom, box.left, box.right)))
        middle = levels[len(levels) // 2]
        return {
            "horizon": shifts,
            "predicted_horizon": horizons,
            "distance": [middle / level if level > 0 and middle > 0 else math.nan for level in levels],
            "affine": subject.affine,
        }

    def report(self, measured: list[dict[str, Any]]) -> dict[str, Any]:
        centred = [
            (np.array(row["horizon"]) - np.mean(row["horizon"]), _centred(row["predicted_horizon"])) for row in measured
        ]
        out: dict[str, Any] = {"about": self.about, "horizon": None}
        if measured[0]["affine"]:
            out["reason"] = "inverse depth up to a shift has no horizon"
        else:
            out["horizon"] = _regression(centred, 1.0)
            out["pairs"] = [{key: row[key] for key in ("horizon", "predicted_horizon")} for row in measured]
        # The camera turns, the obstacle stays where it is: its distance should not change.
        distances = [(np.array(x), np.log(row["distance"])) for (x, _), row in zip(centred, measured)]
        out["log_distance_per_pixel"] = _regression(distances, 0.0)
        return out


class _Roll(_Experiment):
    about = "the frame rolled: does the road roll with it?"
    steps = 11

    def measure(self, subject: _Subject) -> dict[str, Any]:
        height, width = subject.frame.shape[:2]
        size = stimuli.roll_size(height, width, subject.setting.roll)
        truth, seen = [], []
        for degrees in np.linspace(-subject.setting.roll, subject.setting.roll, self.steps):
            inverse = subject.inverse(stimuli.roll(subject.frame, float(degrees), size))
            mask = stimuli.roll(np.repeat(subject.road[..., None], 3, 2).astype(np.float64), float(degrees), size)
            v, u = np.nonzero(mask[..., 0] > 0.5)
            a, b, _ = fit_plane(u, v, inverse[v, u])
            truth.append(float(degrees))
            seen.append(math.degrees(math.atan2(-a, b)) if b > 0 else math.nan)
        return {"roll": truth, "predicted_roll": seen}

    def report(self, measured: list[dict[str, Any]]) -> dict[str, Any]:
        pairs = [(row["roll"], row["predicted_roll"]) for row in measured]
        predicted = np.array([row["predicted_roll"] for row in measured], float)
        return {
            "about": self.about,
            "roll": measured[0]["roll"],
            "mean": _mean(predicted),
            "std": _std(predicted),
            "slope": _regression(pairs, 1.0),
        }


class _Obstacles(_Experiment):
    about = "an obstacle with and without a shadow, and with other textures: does the network see it?"
    variants: Mapping[str, Mapping[str, Any]] = {
        "as it is": {},
        "without a shadow": {"shadow": False},
        "outline only": {"outline": True},
        "outline without a shadow": {"outline": True, "shadow": False},
        **{name: {"texture": name} for name in stimuli.TEXTURES if name != "original"},
    }

    def measure(self, subject: _Subject) -> dict[str, Any]:
        below, width = subject.first()
        contact, pixels = subject.stand(below, width)
        v, _ = np.nonzero(subject.road)
        slope, offset = fit_line(v, subject.plain[subject.road])
        ground = slope * contact + offset  # inverse depth of the road where the obstacle touches it
        row = {}
        for name, options in self.variants.items():
            frame, box = insert(subject.frame, subject.setting.obstacle, contact, subject.column, pixels, **options)
            before, after = _level(subject.plain, box), _level(subject.inverse(frame), box)
            # 1: the obstacle is as near as the road at its feet; 0: the depth of what is behind it.
            apart = ground - before
            row[name] = (after - before) / apart if apart > 0 else math.nan
        return row

    def report(self, measured: list[dict[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {"about": self.about, "variants": {}}
        for name in self.variants:
            seen = np.array([row[name] for row in measured], float)
            counted = seen[np.isfinite(seen)]
            out["variants"][name] = {
                "visibility": _mean(seen[:, None])[0],
                "std": _std(seen[:, None])[0],
                "detected": float((counted > 0.5).mean()) if len(counted) else math.nan,
                "frames": len(counted),
            }
        return out


class _Colours(_Experiment):
    about = "the whole frame in other colours: how far does the depth move from that of the original?"

    def measure(self, subject: _Subject) -> dict[str, Any]:
        row = {}
        valid = subject.plain > 0
        for name, recolour in stimuli.RECOLOURED.items():
            inverse = subject.inverse(recolour(subject.frame))
            both = valid & (inverse > 0)
            if not both.any():
                row[name] = math.nan
                continue
            ratio = subject.plain[both] / inverse[both]  # predicted over original depth
            row[name] = float(np.abs(ratio / np.median(ratio) - 1).mean())
        return row

    def report(self, measured: list[dict[str, Any]]) -> dict[str, Any]:
        columns = {name: np.array([[row[name]] for row in measured], float) for name in stimuli.RECOLOURED}
        return {
            "about": self.about,
            "abs_rel_to_original": {
                name: {"mean": _mean(values)[0], "std": _std(values)[0]} for name, values in columns.items()
            },
        }


def _mean(values: Array) -> list[float]:
    """Mean over frames of (frames, n), of what is finite; NaN where nothing is."""
    finite = np.isfinite(values)
    total = finite.sum(0)
    sums = np.where(finite, values, 0.0).sum(0)
    return [float(s / n) if n else math.nan for s, n in zip(sums, total)]


def _std(values: Array) -> list[float]:
    finite = np.isfinite(values)
    mean = np.array(_mean(values))
    total = finite.sum(0)
    squares = np.where(finite, (values - mean) ** 2, 0.0).sum(0)
    return [float(np.sqrt(s / n)) if n else math.nan for s, n in zip(squares, total)]


def _centred(values: Sequence[float]) -> Array:
    array = np.array(values, float)
    finite = np.isfinite(array)
    return array - (array[finite].mean() if finite.any() else 0.0)


EXPERIMENTS: dict[str, _Experiment] = {
    "position_and_size": _PositionAndSize(),
    "pitch": _Pitch(),
    "roll": _Roll(),
    "obstacle": _Obstacles(),
    "colour": _Colours(),
}
"""By name; see the paper's sections on position and apparent size, camera pitch, camera roll, obstacles, colour."""
