"""`mdepth-fast convert`."""

import argparse
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Convert published weights, or a checkpoint of `mdepth-fast train`, to a .safetensors file that names its "
        "model. `mdepth-fast predict` and `eval` read the result. To a folder, convert a run of Monodepth2 to its "
        "published files."
    )
    parser.add_argument("input", type=Path, help="file (.pt, .pth, .tar, .npz, .npy, .safetensors, ...) or folder")
    parser.add_argument("output", type=Path, help="file to write, .safetensors, or a new folder")
    parser.add_argument(
        "--model", metavar="NAME", help="registered name of the model (default: the one that fits the file)"
    )
    parser.add_argument(
        "--trust-pickle",
        action="store_true",
        help="also read a whole pickled module, such as FastDepth's. It is read in a separate process that replaces "
        "all names except those of tensors with placeholders. A pickle can run code: use this only for files you trust",
    )


def run(arguments: argparse.Namespace) -> None:
    from mdepth_fast.weights import write_converted

    source, target = arguments.input, arguments.output
    if not target.suffix or target.is_dir():
        if arguments.model or arguments.trust_pickle:
            raise ValueError(
                "output: expected a file named *.safetensors with --model and --trust-pickle, got a folder"
            )
        from mdepth_fast.inference import publish

        print(f"{target}: {', '.join(path.name for path in publish(source, target))}")
        return
    if target.suffix != ".safetensors":
        raise ValueError(f"output: expected a file named *.safetensors or a folder, got {target}")
    name, options, state = _read(source, arguments.model, arguments.trust_pickle)
    write_converted(target, name, options, state, source=source.name)
    stated = "".join(f", {key}={value!r}" for key, value in options.items())
    print(f"{target}: {name}{stated}, {len(state)} tensors")


def _read(source: Path, name: str | None, trust_pickle: bool) -> tuple[str, dict[str, Any], dict[str, Any]]:
    from mdepth_fast.inference import load_trained
    from mdepth_fast.models import create_model
    from mdepth_fast.weights import convert_content, load_checkpoint, read_content, read_pickled_module

    if source.is_dir() and name:
        model = create_model(name)
        load_checkpoint(model, source)
        return name, {}, model.state_dict()
    content: dict[str, Any] = {}
    if not source.is_dir():
        try:
            content = read_content(source)
        except ValueError:
            if not trust_pickle:
                raise
            content = read_pickled_module(source)
    if source.is_dir() or ("mdepth_fast" in content and not name):
        net = load_trained(source).net
        name, options = net.created_as
        if hasattr(net, "input_size"):
            options = options | {"input_size": net.input_size}
        return name, options, net.state_dict()
    return convert_content(content, source, name)
