"""Calls go down only: no module reaches one of a higher floor, and no circle of modules, whichever way they import.

An arrow goes from a module to each that it imports, at its top or inside a function, and to the packages around that
one, whose `__init__` runs first. What only a type checker reads is no arrow. A name that a package gives on demand
(PEP 562) is an arrow of whoever asks for it, not of the package.
"""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "mdepth_fast"

# From the roof down. The longest name that a module starts with says where it stands; "" is the package's __init__.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("cli", "__main__", "_info", ""),
    ("training", "inference", "bench", "benchmark", "netadapt.run", "probe"),
    ("systems",),
    ("models", "losses", "data", "evaluation", "weights", "netadapt"),
    # These know no model, so that models can fill their encoders.
    tuple(
        f"weights.{name}"
        for name in (
            *("read", "match", "encoder", "converted", "numpy_pickle", "tf_bundle", "unpickle", "hub", "card"),
            *("download", "registry"),
        )
    ),
    ("engines",),
    ("ops", "geometry", "alignment"),
    ("_op",),
    ("kernels", "_dispatch", "_native"),
    ("visualize", "files", "kinds", "_source_tree"),
)
FLOOR = {room: len(FLOORS) - number for number, rooms in enumerate(FLOORS) for room in rooms}

# Triton's kernels are plug-ins: `_dispatch` imports the file of an op by name when it first considers it, and the file
# registers itself there. It implements the op of its name and takes that op's constants and gradient rules from `ops`.
# Both together are a circle, which Python never sees: by then `ops` is there.
PLUG_IN = ("kernels", "ops")
BY_NAME = {"_dispatch", "_native", "cli"}  # may import by a string, as any package may in its `__getattr__`
EARLY = {"__version__"}  # of the package's `__init__`: set before it imports anything


def sources() -> dict[str, str]:
    """Text of every module, named without the package; `kernels/` is installed as `mdepth_fast.kernels`."""
    files = [(path, path.relative_to(ROOT / PACKAGE)) for path in (ROOT / PACKAGE).rglob("*.py")]
    files += [(path, path.relative_to(ROOT)) for path in (ROOT / "kernels").rglob("*.py")]
    return {".".join(name.with_suffix("").parts): path.read_text() for path, name in files}


class Modules:
    """Modules by name, "models" for the `__init__` of a package, with their imports."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.trees = {name.removesuffix("__init__").rstrip("."): ast.parse(text) for name, text in texts.items()}
        self.packages = {name.removesuffix("__init__").rstrip(".") for name in texts if name.endswith("__init__")}
        # What a package gives on demand: name to the module that defines it.
        self.on_demand: dict[str, dict[str, str | None]] = {package: {} for package in self.packages}
        for package, names in self.on_demand.items():
            for part in filter(_is_deferred, self.trees[package].body):
                for node in ast.walk(part):
                    if isinstance(node, ast.ImportFrom):
                        names |= {alias.asname or alias.name: self._base(package, node) for alias in node.names}
        self.arrows = {name: set(self._arrows(name)) for name in self.trees}

    def _base(self, module: str, node: ast.ImportFrom) -> str | None:
        """The module after `from`, None for one of another package."""
        if not node.level:
            first, _, rest = (node.module or "").partition(".")
            return rest if first == PACKAGE else None
        parts = module.split(".") if module in self.packages else module.split(".")[:-1]
        parts = parts[: len(parts) - node.level + 1]
        return ".".join([*filter(None, parts), *([node.module] if node.module else [])])

    def _arrows(self, module: str) -> Iterator[str]:
        for node in _running(self.trees[module]):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    first, _, rest = alias.name.partition(".")
                    if first == PACKAGE and rest:
                        yield from self._entered(module, rest)
            elif isinstance(node, ast.ImportFrom) and (base := self._base(module, node)) is not None:
                for alias in node.names:
                    if (inner := f"{base}.{alias.name}".strip(".")) in self.trees:
                        yield from self._entered(module, inner)
                    elif base or alias.name not in EARLY:
                        yield from self._entered(module, base)
                        if (home := self.on_demand.get(base, {}).get(alias.name)) is not None:
                            yield from self._entered(module, home)

    def _entered(self, module: str, target: str) -> Iterator[str]:
        """`target` and the packages around it which are not around `module`, where they run already."""
        if target in self.trees and target != module:
            yield target
        parts = target.split(".")
        for count in range(1, len(parts)):
            package = ".".join(parts[:count])
            if package in self.packages and not f"{module}.".startswith(f"{package}."):
                yield package

    def faults(self) -> list[str]:
        plugged = {(a, b) for a in self.arrows for b in self.arrows[a] if (_room(a), _room(b)) == PLUG_IN}
        found = [
            f"{a or PACKAGE} -> {b or PACKAGE} points up"
            for a, targets in self.arrows.items()
            for b in sorted(targets)
            if _floor(a) < _floor(b) and (a, b) not in plugged
        ]
        graph = {a: {b for b in targets if (a, b) not in plugged} for a, targets in self.arrows.items()}
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            found.append("circle: " + " -> ".join(name or PACKAGE for name in error.args[1][::-1]))
        for name, tree in self.trees.items():
            by_name = {ast.unparse(node.func) for node in _running(tree) if isinstance(node, ast.Call)}
            if by_name & {"importlib.import_module", "import_module", "__import__"} and _room(name) not in BY_NAME:
                found.append(f"{name}: imports by a string, which no reader and no test can follow")
        return found


def _is_deferred(node: ast.AST) -> bool:
    """Whether a statement is for type checkers alone or is a module's `__getattr__`."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    return isinstance(node, ast.FunctionDef) and node.name == "__getattr__" and node.args.args[0].arg != "self"


def _running(tree: ast.Module) -> Iterator[ast.AST]:
    return (node for part in tree.body if not _is_deferred(part) for node in ast.walk(part))


def _room(module: str) -> str:
    return module.partition(".")[0]


def _floor(module: str) -> int:
    parts = module.split(".")
    for count in range(len(parts), 0, -1):
        if (name := ".".join(parts[:count])) in FLOOR:
            return FLOOR[name]
    raise AssertionError(f"{module}: stands on no floor; the table in this test says which rooms there are")


def test_calls_go_down_only():
    modules = Modules(sources())
    assert {"models.dpt", "weights.checkpoint", "ops.inverse_warp", "kernels.inverse_warp"} <= modules.trees.keys()
    assert modules.faults() == []


HOUSE = {
    "__init__": "__version__ = '1'\nfrom mdepth_fast import ops",
    "cli.__init__": "def main():\n    from mdepth_fast.models import load",
    "models.__init__": "from .net import Net\ndef __getattr__(n):\n    from mdepth_fast.weights.checkpoint import load",
    "models.net": "from mdepth_fast.weights.read import read\nfrom ..ops import op",
    "weights.__init__": "",
    "weights.read": "from mdepth_fast import __version__",
    "weights.checkpoint": "from mdepth_fast.models.net import Net",
    "ops.__init__": "from mdepth_fast.ops.op import op",
    "ops.op": "from mdepth_fast import _dispatch",
    "_dispatch": "import importlib\ndef load(op):\n    importlib.import_module('mdepth_fast.kernels.' + op)",
    "kernels.__init__": "",
    "kernels.op": "from mdepth_fast import _dispatch\nfrom mdepth_fast.ops.op import op",
}


@pytest.mark.parametrize(
    ("module", "line", "fault"),
    [
        ("ops.op", "from mdepth_fast.models import Net", "ops.op -> models points up"),
        ("ops.op", "def f():\n    from ..models.net import Net", "ops.op -> models.net points up"),
        ("ops.op", "from mdepth_fast import models", "ops.op -> models points up"),
        ("ops.op", "import mdepth_fast.models.net as net", "ops.op -> models.net points up"),
        ("models.net", "from mdepth_fast import create_model", "models.net -> mdepth_fast points up"),
        ("weights.read", "from mdepth_fast.models import Net", "weights.read -> models points up"),
        ("models.net", "from mdepth_fast.models import load", "circle"),
        ("models.net", "def f():\n    from mdepth_fast.weights import checkpoint", "circle"),
        ("models.net", "class A:\n    def f(self):\n        import mdepth_fast.weights.checkpoint", "circle"),
        ("weights.__init__", "from .checkpoint import load", "circle"),
        ("ops.op", "import importlib\nimportlib.import_module('mdepth_fast.models')", "imports by a string"),
        ("kernels.op", "from mdepth_fast.models import Net", "kernels.op -> models points up"),
    ],
)
def test_what_points_up_or_round_is_found(module, line, fault):
    assert Modules(HOUSE).faults() == []
    faults = Modules({**HOUSE, module: f"{HOUSE[module]}\n{line}"}).faults()
    assert any(fault in found for found in faults), faults


def test_one_op_has_one_name_on_every_floor():
    ops = {path.stem for path in (ROOT / PACKAGE / "ops").glob("*.py") if not path.stem.startswith("_")}
    chained = {"conv_stack"}  # on a GPU a chain of other ops
    loops = {"icp_align"}  # a search for each point that ends when it may: nothing for Triton's blocks
    floors = {
        "csrc/include/mdepth/{}.h": ops,
        "csrc/cpu/{}.cpp": ops,
        "csrc/cuda/{}.cuh": ops - chained,
        "kernels/{}.py": ops - chained - loops,
        "tests/ops/test_{}.py": ops,
    }
    missing = [
        form.format(op) for form, names in floors.items() for op in names if not (ROOT / form.format(op)).exists()
    ]
    assert ops and not missing
