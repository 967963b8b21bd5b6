"""`mdepth-fast export`."""

import argparse
from pathlib import Path
from typing import Any

from mdepth_fast.cli._common import add_checkpoint, pick_device, size

_SUFFIX = {"onnx": ".onnx", "torch-export": ".pt2", "aoti": ".aoti.pt2"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write a network for another runtime. The file takes images of any number and size and does all that `predict` "
        "does: resizing, normalisation, depth. It is run and compared with PyTorch before it appears. docs/export.md "
        "lists the networks and shows how to use the files."
    )
    parser.add_argument(
        "model",
        help="checkpoint, run folder, converted .safetensors, or folder of Monodepth2's files; with --random-weights "
        "the name of a network, such as fastdepth",
    )
    parser.add_argument(
        "--to", required=True, choices=tuple(_SUFFIX), help="kind of file; aoti: AOTInductor's compiled code"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write (default: named after the model)")
    add_checkpoint(parser)
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="export an untrained network, to try a runtime or measure its speed",
    )
    parser.add_argument(
        "--size",
        type=size,
        metavar="HxW",
        help="size that images are resized to in the file (default: as trained, or that of the paper)",
    )
    parser.add_argument(
        "--fixed-size",
        action="store_true",
        help="take only images of that size and resize nothing, for runtimes without antialiased resizing",
    )
    parser.add_argument(
        "--intrinsics",
        action="store_true",
        help="add an input K, the camera matrices of the images, to a network of metric depth from stereo pairs",
    )
    parser.add_argument("--opset", type=int, default=18, help="of ONNX, at least 18 (default: %(default)s)")
    parser.add_argument(
        "--device",
        default="cpu",
        help="that the network is on when captured; aoti compiles for it (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    from mdepth_fast.inference import export

    target = arguments.to
    net, name, weights = _network(arguments, pick_device(arguments.device))
    path = arguments.output or Path(f"{name}{_SUFFIX[target]}")
    done = export(
        net,
        path,
        target,
        size=arguments.size,
        fixed_size=arguments.fixed_size,
        intrinsics=arguments.intrinsics,
        opset=arguments.opset,
        weights=weights,
    )
    about = {key.removeprefix("mdepth_fast."): value for key, value in done.metadata.items()}
    unit = f" in {about['unit']}" if about["unit"] else ""
    random = ", random weights" if arguments.random_weights else ""
    resizing = f"{'images of' if arguments.fixed_size else 'resized to'} {about['input_size']}"
    print(f"{done.path}: {about['model']}{random}, {', '.join(done.inputs)} -> {', '.join(done.outputs)}, {resizing}")
    print(f"{about['kind']}{unit}; largest relative difference from PyTorch {done.difference:.1g}")


def _network(arguments: argparse.Namespace, device: Any) -> tuple[Any, str, str]:
    """The network, the name of its file, and where its weights come from."""
    model = arguments.model
    if arguments.random_weights:
        from mdepth_fast.inference.export import settle
        from mdepth_fast.models import create_model

        if arguments.checkpoint:
            raise ValueError("--checkpoint: expected a run folder, not --random-weights")
        net = create_model(model).to(device).eval()
        settle(net, arguments.size)
        return net, model, "random"
    from mdepth_fast.inference import load_trained
    from mdepth_fast.models import list_models
    from mdepth_fast.weights.hub import is_on_hub
    from mdepth_fast.weights.registry import is_published

    path = Path(model)
    if not (path.exists() or is_on_hub(model) or is_published(model)):
        if model in list_models():
            raise ValueError(
                f"model: {model} is the name of a network, expected its weights (run folder, checkpoint or file); "
                "--random-weights exports it untrained"
            )
        raise FileNotFoundError(f"{model}: no such checkpoint, run folder or file")
    net = load_trained(model, device, checkpoint=arguments.checkpoint).net
    return net, path.resolve().name if path.is_dir() else path.stem, path.name
