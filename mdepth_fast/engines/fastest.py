"""Which engine is the fastest for a network on a kind of machine: a table that `mdepth-fast bench` writes."""

import json
from collections.abc import Mapping
from pathlib import Path

from mdepth_fast.engines import ENGINES
from mdepth_fast.files import replacing

__all__ = ["TABLE", "fastest", "record"]

TABLE = Path(__file__).with_name("fastest.json")
_MARGIN = 1.05  # what an engine has to win by over the native kernels, the answer in doubt


def fastest(kind: str, model: str, dtype: str, possible: Mapping[str, bool]) -> str:
    """The engine with the highest measured speed out of those that are possible here, "native" in doubt.

    kind: see `runtimes.machine_kind`. model: the name that `create_model` takes.
    """
    speeds = json.loads(TABLE.read_text()).get(kind, {}).get(model, {}).get(dtype, {})
    known = {name: speed for name, speed in speeds.items() if possible.get(name)}
    best = max(known, key=known.__getitem__, default="native")
    # Without a speed, the native kernels cannot compute in this precision.
    return best if speeds.get(best, 0) > _MARGIN * speeds.get("native", 0) else "native"


def record(kind: str, model: str, dtype: str, speeds: Mapping[str, float]) -> None:
    """Writes the speeds of engines, as multiples of PyTorch's in float32, in place of what the table said of them."""
    if unknown := sorted(set(speeds) - set(ENGINES)):
        raise ValueError(f"speeds: expected some of {', '.join(ENGINES)}, got {', '.join(unknown)}")
    content = json.loads(TABLE.read_text())
    content.setdefault(kind, {}).setdefault(model, {})[dtype] = {k: round(v, 3) for k, v in sorted(speeds.items())}
    with replacing(TABLE) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
