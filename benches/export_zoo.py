"""Exports every network at its true size and writes results/export.json and the table of docs/export.md.

python benches/export_zoo.py [--to onnx|torch-export|aoti] [--missing] [model ...]
python benches/export_zoo.py --table    exports nothing: writes the table anew

A model's result is written as soon as it is there; the others in the file stay. The weights are random, with batch
norms as `inference.export.settle` sets them. The exit status is 1 if a network that has a form differs from PyTorch.
"""

import argparse
import datetime
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import mdepth_fast
from mdepth_fast.files import replacing
from mdepth_fast.inference.export import TOLERANCE, Target, default_size, export, settle
from mdepth_fast.models import create_model, list_models

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "export.json", HERE.parent / "docs" / "export.md"
BEGIN, END = "<!-- models:begin -->", "<!-- models:end -->"
TARGETS: dict[Target, str] = {"onnx": "ONNX", "torch-export": "torch.export", "aoti": "AOTInductor"}
# Of networks that say no size of their own: as in their presets.
SIZES = {
    "monodepth2": (192, 640),
    "posenet": (192, 640),
    "posecnn": (192, 640),
    "monodepth_": (256, 512),
    "sfmlearner": (128, 416),
    "vid2depth": (128, 416),
    "flownet": (384, 512),
}


def measured(name: str, target: Target, folder: Path) -> dict[str, Any]:
    """What the export of a network came to: the difference, or why there is none."""
    own = next((size for prefix, size in SIZES.items() if name.startswith(prefix)), None)
    torch.manual_seed(0)
    net = create_model(name)
    size = default_size(net) or own
    path = folder / f"{name}.{'onnx' if target == 'onnx' else 'pt2'}"
    try:
        settle(net, size)
        done = export(net, path, target, size=size)
    except ValueError as error:
        return {"reason": str(error)}
    finally:
        path.unlink(missing_ok=True)
    return {
        "inputs": done.inputs,
        "outputs": done.outputs,
        "size": done.metadata["mdepth_fast.input_size"],
        "kind": done.metadata["mdepth_fast.kind"],
        "difference": float(f"{done.difference:.3g}"),
        "spread": float(f"{done.spread:.3g}"),
    }


def read() -> dict[str, Any]:
    empty: dict[str, Any] = {"models": {}}
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else empty


def table(record: dict[str, Any]) -> str:
    """The table of the page, as Markdown."""
    lines = [
        f"| network | inputs | outputs | size | {' | '.join(TARGETS.values())} |",
        "|---" * (4 + len(TARGETS)) + "|",
    ]
    for name in list_models():
        results = record["models"].get(name, {})
        first = next((one for one in results.values() if "difference" in one), None)
        if first is None:
            reason = next((f"no: {one['reason']}" for one in results.values()), "not measured")
            lines.append(f"| `{name}` | {reason} |" + " |" * (2 + len(TARGETS)))
            continue
        cells = [", ".join(f"`{word}`" for word in first[key]) for key in ("inputs", "outputs")] + [first["size"]]
        for target in TARGETS:
            one = results.get(target, {})
            cells.append(f"{one['difference']:.0e}" if "difference" in one else one.get("reason", "not measured"))
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(text: str, record: dict[str, Any]) -> str:
    """The page with the table of the result file."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    content = f"{BEGIN}\n{table(record)}\n\nBy {versions}, {record['date']}.\n{END}"
    return re.sub(f"{BEGIN}.*{END}", lambda match: content, text, flags=re.DOTALL)


def write(record: dict[str, Any]) -> None:
    with replacing(RESULTS) as temporary:
        temporary.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    if PAGE.exists():
        text = page(PAGE.read_text(), record)
        with replacing(PAGE) as temporary:
            temporary.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--to", action="append", choices=tuple(TARGETS), help="default: onnx and torch-export")
    parser.add_argument("--missing", action="store_true", help="only what the result file lacks")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    record = read()
    if arguments.table:
        write(record)
        return 0
    import onnx
    import onnxruntime

    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models or list_models():
            for target in arguments.to or ("onnx", "torch-export"):
                if arguments.missing and target in record["models"].get(name, {}):
                    continue
                result = measured(name, target, Path(folder))
                record = read()  # another process may have added to it
                record["models"].setdefault(name, {})[target] = result
                record["tolerance"] = TOLERANCE
                record["date"] = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
                record["versions"] = {"mdepth_fast": mdepth_fast.__version__, "torch": torch.__version__}
                record["versions"] |= {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
                write(record)
                print(
                    name, target, result.get("difference", result.get("reason")), result.get("spread", ""), flush=True
                )
                if "more than" in result.get("reason", ""):
                    wrong.append(f"{name} to {target}")
    if wrong:
        print(f"differ: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
