"""Which engine is the fastest for a network on a kind of machine: a table that `mdepth-fast bench` writes."""

import json
from collections.abc import Mapping
from pathlib import Path

from mdepth_fast.engines.runtimes import ENGINES
from mdepth_fast.files import replacing

__all__ = ["TABLE", "fastest", "record"]

TABLE = Path(__file__).with_name("fastest.json")
_MARGIN = 1.05  # what an engine has to win by over the native kernels, the answer in doubt


def fastest(kind: str, model: str, dtype: str, possible: Mapping[str, bool], table: Path = TABLE) -> str:
    """The engine with the highest measured speed out of those that are possible here, else "native".

    kind: see `runtimes.machine_kind`. model: the name that `create_model` takes.
    """
    speeds = json.loads(table.read_text()).get(kind, {}).get(model, {}).get(dtype, {})
    if "native" not in speeds:
        return "native"
    known = {name: speed for name, speed in speeds.items() if possible.get(name)}
    best = max(known, key=known.__getitem__, default="native")
    return best if speeds.get(best, 0) > _MARGIN * speeds["native"] else "native"


def record(kind: str, model: str, dtype: str, speeds: Mapping[str, float], table: Path = TABLE) -> None:
    """Writes the speeds of engines, as multiples of PyTorch's in float32, in place of what the table said of them."""
    if unknown := sorted(set(speeds) - set(ENGINES)):
        raise ValueError(f"speeds: expected some of {', '.join(ENGINES)}, got {', '.join(unknown)}")
    content = json.loads(table.read_text()) if table.exists() else {}
    content.setdefault(kind, {}).setdefault(model, {})[dtype] = {k: round(v, 3) for k, v in sorted(speeds.items())}
    with replacing(table) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
