"""The package imported from a source tree, where its parts lie apart.

Python started in the root of a checkout imports the checkout's mdepth_fast/, however the package was installed. There
`mdepth_fast.kernels` and `mdepth_fast.csrc` are the folders kernels/ and csrc/ beside it, and `mdepth_fast._C` is the
module that `pip install -e .` left in the package or `pip install .` in site-packages. It must have been built from the
C++ sources of this tree, so their digests are compiled in. setup.py runs this file too: standard library only.
"""

import hashlib
import mmap
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

__all__ = ["cuda_sources_changed", "digests", "install"]

_ROOT = Path(__file__).resolve().parents[1]
_MARKER = re.compile(rb"mdepth_fast\.sources=([0-9a-f]{32})\+([0-9a-f]{32})")


def digests(root: Path = _ROOT) -> str:
    """Digests of the C++ sources below `root`/csrc, of csrc/cuda apart from the others, as the module has them."""
    host, cuda = hashlib.sha256(), hashlib.sha256()
    for path in sorted((root / "csrc").rglob("*")):
        if path.suffix in (".h", ".cpp", ".cuh", ".in"):
            name = path.relative_to(root / "csrc")
            content = path.read_bytes()
            (cuda if name.parts[0] == "cuda" else host).update(
                b"%s %d\n%s" % (name.as_posix().encode(), len(content), content)
            )
    return f"mdepth_fast.sources={host.hexdigest()[:32]}+{cuda.hexdigest()[:32]}"


def cuda_sources_changed(sources: str) -> bool:
    """Whether csrc/cuda, here a source tree, is not what a module with these digests was built from."""
    return _is_source_tree() and sources.rpartition("+")[2] != digests().rpartition("+")[2]


def install() -> None:
    """Lets the imports of the package find its parts where it is imported from a source tree."""
    if _is_source_tree():
        # First, or the finder of an editable install of another tree would answer with that tree's.
        sys.meta_path.insert(0, _Finder())


def _is_source_tree() -> bool:
    return (_ROOT / "setup.py").is_file() and (_ROOT / "csrc" / "bindings.cpp").is_file()


class _Finder:
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in ("mdepth_fast.kernels", "mdepth_fast.csrc"):
            return PathFinder.find_spec(name, [str(_ROOT)])
        if name == "mdepth_fast._C":
            return _compiled(name)
        return None


def _compiled(name: str) -> ModuleSpec:
    """The first module for this interpreter that was built from this tree's C++ sources.

    Raises ImportError where there is none, or only such as were built from others: these are not even loaded.
    """
    wanted = digests().rpartition("+")[0].encode()
    other = None
    for spec in _candidates(name):
        assert spec.origin is not None
        if not Path(spec.origin).stat().st_size:  # of a build that was interrupted
            other = spec.origin
            continue
        with Path(spec.origin).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if (found := _MARKER.search(content)) and found[0].startswith(wanted + b"+"):
                return spec
        other = spec.origin
    again = "pip install -e ." if other and Path(other).is_relative_to(_ROOT) else "pip install ."
    if other:
        problem = f"{other} was built from other C++ sources than those in {_ROOT / 'csrc'}"
    else:
        version = ".".join(map(str, sys.version_info[:2]))
        problem = f"it has not been built for this environment (Python {version}, {sys.prefix})"
    raise ImportError(f"{problem}; in {_ROOT} run: {again}", name=name)


def _candidates(name: str) -> Iterator[ModuleSpec]:
    for folder in dict.fromkeys((str(_ROOT), *sys.path)):
        spec = PathFinder.find_spec(name, [str(Path(folder) / "mdepth_fast")])
        if spec is not None and spec.origin is not None:
            yield spec
