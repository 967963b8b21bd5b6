"""pytest on the CPU kernels of another build, the one under AddressSanitizer: python sanitized.py MODULE ARGUMENT ...

The interpreter has to be started with libasan preloaded, see `make sanitize-cpu`. What a tensor of torch owns has
guarded memory around it then, so an access beyond an input or an output ends the run.
"""

import importlib.util
import sys
from importlib.machinery import ExtensionFileLoader

import pytest


def main(path: str, *arguments: str) -> int:
    name = "mdepth_fast._C"
    spec = importlib.util.spec_from_loader(name, ExtensionFileLoader(name, path), origin=path)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    import mdepth_fast._native

    if mdepth_fast._native.module() is not sys.modules[name]:
        raise RuntimeError(f"{path} was not loaded")
    return int(pytest.main([*arguments]))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
