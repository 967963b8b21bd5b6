"""The report of `probe` on the disk: JSON, plots, and a few lines to read."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mdepth_fast.files import replacing
from mdepth_fast.probe import stimuli
from mdepth_fast.probe.experiments import Predict, Setting
from mdepth_fast.visualize import Cell, colorize, draw_panel

__all__ = ["draw_examples", "draw_report", "summary", "write_report"]


def write_report(path: str | Path, report: Mapping[str, Any]) -> None:
    """Writes the report as JSON; a number that is not finite becomes null, which JSON can say."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_plain(report), indent=2, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def summary(report: Mapping[str, Any]) -> str:
    """The findings in lines: the experiment, what was measured, and the ideal."""
    lines = [f"{len(report['frames'])} frames; slopes with 95 % intervals over frames"]

    def line(label: str, regression: Mapping[str, Any]) -> None:
        interval = regression["interval"]
        between = f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""
        lines.append(f"  {label:<34}{_number(regression['slope'])}{between}   ideal {regression['ideal']:g}")

    for name, found in report["experiments"].items():
        lines.append(f"{name}: {found['about']}")
        if name == "position_and_size":
            for condition, values in found["conditions"].items():
                line(condition, values["log_slope"])
        elif name == "pitch":
            if found["horizon"] is None:
                lines.append(f"  horizon: {found['reason']}")
            else:
                line("shift of the horizon", found["horizon"])
            change = found["log_distance_per_pixel"]["slope"]
            per_pixel = _number(100 * math.expm1(change))
            lines.append(f"  {'change of the distance per pixel':<34}{per_pixel} %   ideal 0")
        elif name == "roll":
            line("roll of the road", found["slope"])
        elif name == "obstacle":
            for variant, values in found["variants"].items():
                seen = f"{_number(values['visibility'])}   seen in {_number(100 * values['detected'], 0).strip()} %"
                lines.append(f"  {variant:<34}{seen} of {values['frames']} frames")
        elif name == "colour":
            for recoloured, values in found["abs_rel_to_original"].items():
                lines.append(f"  {recoloured:<34}{_number(values['mean'], 3)} AbsRel to the original")
    return "\n".join(lines)


def _number(value: float, digits: int = 2) -> str:
    return f"{value:7.{digits}f}" if math.isfinite(value) else "      -"


def draw_report(path: str | Path, report: Mapping[str, Any]) -> None:
    """Draws one plot for each experiment of the report, side by side, into one PNG."""
    from matplotlib.figure import Figure

    found = report["experiments"]
    figure = Figure(figsize=(5.2 * len(found), 4.4), layout="constrained")
    for axes, (name, values) in zip(np.atleast_1d(figure.subplots(1, len(found))), found.items()):
        axes.set_title(name.replace("_", " "))
        _DRAW[name](axes, values)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _position_and_size(axes: Any, found: Mapping[str, Any]) -> None:
    x = np.array(found["distances"])
    axes.plot(x, x, "k--", label="true distance")
    for condition, values in found["conditions"].items():
        mean, std = np.array(values["mean"]), np.array(values["std"])
        axes.plot(x, mean, label=condition)
        axes.fill_between(x, mean - std, mean + std, alpha=0.2)
    axes.set(xlabel="relative distance that the cue shows", ylabel="predicted relative distance")
    axes.legend()


def _pitch(axes: Any, found: Mapping[str, Any]) -> None:
    if found["horizon"] is None:
        axes.text(0.5, 0.5, found["reason"], ha="center", transform=axes.transAxes)
        axes.axis("off")
        return
    for pair in found["pairs"]:
        axes.plot(pair["horizon"], pair["predicted_horizon"], ".-", color="tab:blue", alpha=0.5)
    rows = [row for pair in found["pairs"] for row in pair["horizon"]]
    axes.plot([min(rows), max(rows)], [min(rows), max(rows)], "k--", label="true horizon")
    axes.set(xlabel="horizon (row of the crop)", ylabel="predicted horizon")
    axes.legend()


def _roll(axes: Any, found: Mapping[str, Any]) -> None:
    x, mean, std = np.array(found["roll"]), np.array(found["mean"]), np.array(found["std"])
    axes.plot(x, x, "k--", label="true roll")
    axes.plot(x, mean, label="predicted")
    axes.fill_between(x, mean - std, mean + std, alpha=0.2)
    axes.set(xlabel="roll (degrees)", ylabel="predicted roll of the road (degrees)")
    axes.legend()


def _obstacle(axes: Any, found: Mapping[str, Any]) -> None:
    names = list(found["variants"])[::-1]
    values = [found["variants"][name] for name in names]
    axes.barh(names, [one["visibility"] for one in values], xerr=[one["std"] for one in values])
    axes.axvline(1, color="k", linestyle="--")
    axes.set(xlabel="0: depth behind it, 1: depth of the road at its feet")


def _colour(axes: Any, found: Mapping[str, Any]) -> None:
    names = list(found["abs_rel_to_original"])[::-1]
    values = [found["abs_rel_to_original"][name] for name in names]
    axes.barh(names, [one["mean"] for one in values], xerr=[one["std"] for one in values])
    axes.set(xlabel="AbsRel to the prediction for the original")


def draw_examples(path: str | Path, frame: Any, predict: Predict, setting: Setting) -> None:
    """Draws one frame, some of its edits, and what the network predicts for each, into one PNG."""
    height = len(frame)
    below = setting.below(height)
    contact, width = round(setting.row() + below), below * setting.obstacle_width / setting.camera_height

    def car(**options: Any) -> Any:
        return stimuli.insert(frame, setting.obstacle, contact, setting.centre[0], max(4, round(width)), **options)[0]

    edits = {
        "original": frame,
        "obstacle": car(),
        "without a shadow": car(shadow=False),
        "outline only": car(outline=True),
        "false colours": stimuli.false_colours(frame),
        "rolled": stimuli.roll(frame, setting.roll, stimuli.roll_size(height, frame.shape[1], setting.roll)),
    }
    cells = []
    for title, edit in edits.items():
        inverse = colorize(np.asarray(predict(edit), np.float64), kind="affine_inverse")
        cells += [Cell(title, (edit * 255 + 0.5).astype(np.uint8)), Cell("predicted", inverse)]
    draw_panel(path, cells, columns=4)


_DRAW = {
    "position_and_size": _position_and_size,
    "pitch": _pitch,
    "roll": _roll,
    "obstacle": _obstacle,
    "colour": _colour,
}
