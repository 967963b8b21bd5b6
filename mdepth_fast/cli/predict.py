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
        "Write predicted depth for an image, or for every image in a folder, as a depth map and a colour image."
    )
    parser.add_argument(
        "weights", help="checkpoint, run folder, converted .safetensors, or folder of Monodepth2's files"
    )
    parser.add_argument(
        "--checkpoint",
        choices=("last", "best"),
        help="checkpoint to use from a run folder (default: last; see trainer.monitor)",
    )
    parser.add_argument("input", type=Path, help="an image, or a folder of images or video frames")
    parser.add_argument(
        "--output", type=Path, default=Path("predictions"), help="folder to write to (default: %(default)s)"
    )
    parser.add_argument(
        "--format", choices=("png", "npy"), default="png", help="16-bit PNG or float32 npy (default: %(default)s)"
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
        "--size", type=_size, metavar="HxW", help="size of the network input, multiples of 32 (default: as trained)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    import numpy as np
    import torch

    from mdepth_fast.cli._common import pick_device, progress
    from mdepth_fast.data.samples import list_images, read_depth, read_image
    from mdepth_fast.inference import load_trained
    from mdepth_fast.visualize import color_range, colorize, write_depth_png, write_npy, write_png

    source, output = arguments.input, arguments.output
    if source.is_dir():
        if output.resolve() == source.resolve():
            raise ValueError(f"--output: expected another folder than the input, got {output}")
        paths = list_images(source)
        if not paths:
            raise FileNotFoundError(f"{source}: no images in this folder")
        if len({path.stem for path in paths}) < len(paths):
            raise ValueError(f"{source}: expected images of different names, some differ in their suffix only")
    elif source.is_file():
        paths = [source]
    else:
        raise FileNotFoundError(f"{source}: no such image or folder")

    device = pick_device(arguments.device)
    trained = load_trained(arguments.weights, device, checkpoint=arguments.checkpoint)

    def depth_path(path: Path) -> Path:
        return output / f"{path.stem}_depth.{arguments.format}"

    def write_color(path: Path, depth: object, bounds: tuple[float, float] | None) -> None:
        write_png(output / f"{path.stem}_color.png", colorize(depth, bounds))  # type: ignore[arg-type]

    clamped, ranges = 0, []
    with progress("predicting") as track:
        for path in track(paths):
            image = torch.from_numpy(read_image(path)).to(device).permute(2, 0, 1)[None].float() / 255
            prediction = trained.net.predict(image, size=arguments.size)
            depth = prediction.depth[0, 0].cpu().numpy()
            if arguments.format == "png":
                clamped += write_depth_png(depth_path(path), depth, arguments.scale)
            else:
                write_npy(depth_path(path), depth)
            if arguments.range == "frame":
                write_color(path, depth, None)
            else:
                ranges.append(color_range(depth))
    if arguments.range == "clip":
        # Depth comes back from the disk: a long video does not fit into memory.
        bounds = min(low for low, _ in ranges), max(high for _, high in ranges)
        with progress("colouring") as track:
            for path in track(paths):
                stored = depth_path(path)
                depth = read_depth(stored, arguments.scale) if arguments.format == "png" else np.load(stored)
                write_color(path, depth, bounds)

    unit = f"in {prediction.unit}" if prediction.unit else "without unit, its scale is unknown"
    what = f"= value / {arguments.scale:g}, 16-bit PNG, 0 = none" if arguments.format == "png" else "as float32 npy"
    print(f"{len(paths)} depth maps in {output}: {prediction.kind} depth {what}, {unit}")
    if clamped:
        print(f"{clamped} pixels were clamped to {1 / arguments.scale:g} .. {65535 / arguments.scale:g}: 16 bits")
