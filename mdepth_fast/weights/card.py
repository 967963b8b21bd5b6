"""Model cards: the README.md of a network on the Hugging Face Hub, whose header the Hub reads."""

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Results", "model_card"]


class Results(NamedTuple):
    """What a network was measured to do."""

    dataset: str
    """the name of the data"""
    protocol: str
    """the line that states how it was measured"""
    values: Mapping[str, float]
    """by metric, in the order of the table"""


def model_card(
    name: str,
    model: Any,
    *,
    license: str = "unknown",
    training: Sequence[str] = (),
    results: Results | None = None,
) -> str:
    """Markdown with a YAML header: what `model`, of the registered `name`, is, and what is known of its training.

    license: the Hub's name of a licence. training: lines on the training data and the settings.
    """
    predicts_depth = hasattr(model, "kind")
    header: dict[str, Any] = {"license": license, "library_name": "mdepth_fast"}
    if predicts_depth:
        header["pipeline_tag"] = "depth-estimation"
    header["tags"] = ["mdepth_fast", name]
    finite = {key: value for key, value in results.values.items() if math.isfinite(value)} if results else {}
    if results and finite:
        metrics = [{"type": key, "name": key, "value": value} for key, value in finite.items()]
        task = {"type": "depth-estimation" if predicts_depth else "optical-flow"}
        dataset = {"type": results.dataset, "name": results.dataset}
        entry = {"task": task, "dataset": dataset, "metrics": metrics}
        header["model-index"] = [{"name": name, "results": [entry]}]
    # JSON is YAML, too.
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in header.items()), "---", "", f"# {name}", ""]
    about = inspect.getdoc(inspect.getmodule(type(model))) or name
    lines += [" ".join(about.partition("\n\n")[0].split())]
    if predicts_depth:
        lines += ["", _OUTPUT[model.kind].format(unit=model.unit)]
    size = getattr(model, "input_size", None)
    lines += [f"Its input is {size[0]}x{size[1]} (height x width)." if size else "It takes any size of input."]
    lines += ["", *(line for line in _USAGE if predicts_depth or ".predict(" not in line)]
    lines += ["", "## Training", "", *(training or ("Nothing is recorded.",))]
    lines += ["", "## Evaluation", ""]
    if results:
        lines += [f"On {results.dataset}. {results.protocol}", ""]
        lines += [f"| {' | '.join(results.values)} |", "|" + "---|" * len(results.values)]
        lines += [f"| {' | '.join(f'{value:.4g}' for value in results.values.values())} |"]
    else:
        lines += ["Nothing is recorded."]
    stated = "not stated" if license == "unknown" else license
    lines += ["", "## Licence", "", f"Licence of these weights: {stated}. {_TERMS}", ""]
    return "\n".join(lines)


_OUTPUT = {
    "metric": "It predicts metric depth along the optical axis, in {unit}.",
    "relative": "It predicts depth along the optical axis, up to one factor per image.",
    "affine_inverse": "It predicts inverse depth up to a scale and a shift per image; larger is closer.",
    "disparity": "It predicts disparity in pixels.",
}
_USAGE = (
    "```python",
    "from mdepth_fast.models import Model",
    "",
    'model = Model.from_pretrained("this folder, or user/repo on the Hub")',
    "prediction = model.predict(images)          # RGB (B, 3, H, W) in [0, 1], any size",
    "```",
)
_TERMS = (
    "The terms of the training data, and of weights that the training began with, apply too. The code, mdepth_fast, is "
    "under Apache-2.0."
)
