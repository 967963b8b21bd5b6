"""`mdepth-fast predict`."""

import argparse
from pathlib import Path


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH such as 192x640, got {text!r}")
    return int(height), int(width)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write predicted depth for images, or for every image in a folder, as a depth map and a colour image. A "
        "network of optical flow writes the flow from each image to the next."
    )
    parser.add_argument(
        "weights",
        help="checkpoint, run folder, converted .safetensors, folder of save_pretrained, hub:user/repo, or folder of "
        "Monodepth2's files",
    )
    parser.add_argument(
        "--checkpoint",
        choices=("last", "best"),
        help="checkpoint to use from a run folder (default: last; see trainer.monitor)",
    )
    parser.add_argument(
        "input", type=Path, nargs="+", help="images, at least two for flow, or a folder of images or video frames"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("predictions"), help="folder to write to (default: %(default)s)"
    )
    parser.add_argument(
        "--format",
        choices=("png", "npy", "flo"),
        help="depth: png (16 bits, default) or npy (float32); flow: flo (Middlebury, default) or png (KITTI)",
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=256.0,
        help="PNG value for a depth of 1; the default is KITTI's (default: %(default)g)",
    )
    parser.add_argument(
        "--range",
        choices=("frame", "clip"),
        default="frame",
        help="scale the colours to each frame, or to all frames so that they do not flicker (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        type=_size,
        metavar="HxW",
        help="size of the network input, multiples of 32, for flow of 64 (default: as trained)",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    from mdepth_fast.cli._common import pick_device, progress
    from mdepth_fast.data.samples import list_images
    from mdepth_fast.inference import load_trained
    from mdepth_fast.systems import PredictOptions

    sources, output = arguments.input, arguments.output
    for source in sources:
        if not source.is_file() and not (source.is_dir() and len(sources) == 1):
            raise FileNotFoundError(
                f"{source}: no such image or folder" if len(sources) == 1 else f"{source}: no such image"
            )
    paths = sources
    if sources[0].is_dir():
        (source,) = sources
        if output.resolve() == source.resolve():
            raise ValueError(f"--output: expected another folder than the input, got {output}")
        paths = list_images(source)
        if not paths:
            raise FileNotFoundError(f"{source}: no images in this folder")
    if len({path.stem for path in paths}) < len(paths):
        raise ValueError(f"{sources[0]}: expected images of different names, some differ in their suffix only")

    trained = load_trained(arguments.weights, pick_device(arguments.device), checkpoint=arguments.checkpoint)
    options = PredictOptions(
        output,
        progress,
        format=arguments.format,
        size=arguments.size,
        scale=arguments.scale,
        one_range=arguments.range == "clip",
    )
    for line in trained.system.write_predictions(trained.net, paths, options):
        print(line)
