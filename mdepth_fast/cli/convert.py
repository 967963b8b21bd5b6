"""`mdepth-fast convert`."""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from mdepth_fast.cli._common import add_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Convert published weights, or a checkpoint of `mdepth-fast train`, to a .safetensors file that names its "
        "model. `mdepth-fast predict` and `eval` read the result. To a folder, convert a run of Monodepth2 to its "
        "published files, or, with --to hub, any of these to what the Hugging Face Hub keeps: weights, configuration "
        "and model card."
    )
    parser.add_argument(
        "input", help="file (.pt, .pth, .tar, .npz, .npy, .safetensors, ...) or folder, or hub:user/repo"
    )
    parser.add_argument("output", type=Path, help="file to write, .safetensors, or a new folder")
    parser.add_argument(
        "--to",
        choices=("safetensors", "monodepth2", "hub"),
        help="what to write (default: safetensors to a file of that suffix, else monodepth2)",
    )
    parser.add_argument(
        "--model", metavar="NAME", help="registered name of the model (default: the one that fits the file)"
    )
    parser.add_argument(
        "--model-args",
        nargs="+",
        metavar="NAME=VALUE",
        default=[],
        help="options of the model that the file does not tell, such as --model fastdepth --model-args "
        "decoder=blconv5dw",
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--license",
        metavar="NAME",
        help="hub: licence of the weights, by the Hub's name for it, such as cc-by-nc-sa-3.0 (default: unknown)",
    )
    parser.add_argument(
        "--trust-pickle",
        action="store_true",
        help="also read a whole pickled module, such as FastDepth's. It is read in a separate process that replaces "
        "all names except those of tensors with placeholders. A pickle can run code: use this only for files you trust",
    )


def run(arguments: argparse.Namespace) -> None:
    source, target, to = arguments.input, arguments.output, arguments.to
    folder = not target.suffix or target.is_dir()
    to = to or ("monodepth2" if folder else "safetensors")
    if arguments.license and to != "hub":
        raise ValueError("--license: expected with --to hub, whose model card states it")
    if to == "hub":
        _to_hub(arguments)
        return
    if to == "monodepth2":
        if arguments.model or arguments.trust_pickle:
            raise ValueError(
                "output: expected a file named *.safetensors with --model and --trust-pickle, got a folder"
            )
        from mdepth_fast.inference import publish

        files = publish(source, target, checkpoint=arguments.checkpoint)
        print(f"{target}: {', '.join(path.name for path in files)}")
        return
    if target.suffix != ".safetensors":
        raise ValueError(f"output: expected a file named *.safetensors, got {target}")
    from mdepth_fast.weights import write_converted

    name, options, state, resized, _ = _read(arguments)
    write_converted(target, name, options, state, source=Path(source).name, resized=resized)
    stated = "".join(f", {key}={value!r}" for key, value in options.items())
    print(f"{target}: {name}{stated}, {len(state)} tensors")


def _to_hub(arguments: argparse.Namespace) -> None:
    from mdepth_fast.inference import run_history, write_hub_folder
    from mdepth_fast.models import create_model

    target = arguments.output
    name, options, state, _, net = _read(arguments)
    training, results = ([], None) if net is None else run_history(arguments.input, arguments.checkpoint)
    if net is None:
        net = create_model(name, **options)
        net.load_state_dict(state)
    write_hub_folder(net, target, license=arguments.license or "unknown", training=training, results=results)
    print(f"{target}: {name}, config.json, model.safetensors, README.md")


class _Source(NamedTuple):
    name: str
    options: dict[str, Any]
    state: dict[str, Any]
    resized: bool = False
    net: Any = None  # of a file or folder that says itself which network it is


def _read(arguments: argparse.Namespace) -> _Source:
    from mdepth_fast.inference import load_trained
    from mdepth_fast.models import create_model
    from mdepth_fast.weights import (
        convert_content,
        converted_model,
        load_checkpoint,
        read_content,
        read_pickled_module,
    )
    from mdepth_fast.weights.hub import is_on_hub
    from mdepth_fast.weights.registry import is_published

    name, source = arguments.model, Path(arguments.input)
    whole = is_on_hub(arguments.input) or source.is_dir() or is_published(arguments.input)
    if arguments.checkpoint and (name or not source.is_dir()):
        raise ValueError(f"--checkpoint: expected a run folder, and no --model, got {arguments.input}")
    given = _model_options(arguments.model_args)
    if given and not name:
        raise ValueError(f"--model-args: goes with --model, got {' '.join(arguments.model_args)}")
    if whole and name:
        if (source / "encoder.pth").is_file() and not given:  # what the folder tells counts
            net = load_trained(source).net
            if net.recipe()[0] == name:
                return _Source(name, net.recipe()[1], net.state_dict())
        model = create_model(name, **given)
        load_checkpoint(model, arguments.input)
        return _Source(name, given, model.state_dict())
    content: dict[str, Any] = {}
    if not whole:
        try:
            content = read_content(source)
        except ValueError:
            if not arguments.trust_pickle:
                raise
            content = read_pickled_module(source)
    says = "mdepth_fast" in content or (source.suffix == ".safetensors" and not whole and converted_model(source)[0])
    if whole or (says and not name):
        net = load_trained(arguments.input, checkpoint=arguments.checkpoint).net
        name, options, resized = net.recipe()
        return _Source(name, options, net.state_dict(), resized, net)
    return _Source(*convert_content(content, source, name, given))


def _model_options(words: list[str]) -> dict[str, Any]:
    """The options of NAME=VALUE words, values in YAML."""
    import yaml

    options = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (name.isidentifier() and equals):
            raise ValueError(f"--model-args: expected NAME=VALUE, got {word!r}")
        value = yaml.safe_load(text)
        options[name] = tuple(value) if isinstance(value, list) else value
    return options
