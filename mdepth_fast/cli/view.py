"""`mdepth-fast view`."""

import argparse
from pathlib import Path

from mdepth_fast.cli._common import add_checkpoint, camera, count, counter, pick_device, report_left_out, size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write a recording for the Rerun viewer: image, depth, camera, points and trajectory, from images or a video "
        "with a network, or with the maps that `predict` has written. `rerun FILE` shows it."
    )
    parser.usage = (
        "mdepth-fast view INPUT ... --weights WEIGHTS [--poses FILE] [--output FILE]\n"
        "       mdepth-fast view [INPUT ...] --maps FOLDER [--poses FILE] [--output FILE]"
    )
    parser.add_argument(
        "input",
        nargs="*",
        metavar="INPUT",
        help="images, a folder of images, or one video; with --maps the images that they belong to, if there are any",
    )
    parser.add_argument(
        "--weights",
        help="network: checkpoint, run folder, converted .safetensors, folder of save_pretrained, hub:user/repo, or "
        "folder of Monodepth2's files",
    )
    parser.add_argument(
        "--maps", type=Path, metavar="FOLDER", help="what `predict` has written there as npy, tiff or png"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("view.rrd"), metavar="FILE", help="file to write (default: %(default)s)"
    )
    parser.add_argument(
        "--poses",
        type=Path,
        metavar="FILE",
        help="camera-to-world poses in the unit of the depth, a line per frame: KITTI odometry (12 numbers), 4x4 "
        "matrices (16) or TUM (8), as `odometry` writes them",
    )
    parser.add_argument(
        "--K",
        metavar="FX,FY,CX,CY|FILE",
        help="camera in pixels of the input, or file of its 3x3 matrix (default: that of the maps)",
    )
    parser.add_argument(
        "--view", type=float, metavar="DEGREES", help="horizontal angle of view, where the camera is not known"
    )
    parser.add_argument("--frames", type=count, metavar="N", help="stop after the first N frames")
    parser.add_argument("--every", type=count, default=1, metavar="N", help="only every n-th frame")
    parser.add_argument(
        "--points", type=count, default=50_000, metavar="N", help="points of a frame, at most (default: %(default)s)"
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--size",
        type=size,
        metavar="HxW",
        help="size of the network's input, multiples of 32, for Depth Anything of 14 (default: as trained)",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    from functools import partial
    from typing import Any

    import rerun  # noqa: F401  (before weights are read, so that its absence shows at once)

    from mdepth_fast.data import Trajectory
    from mdepth_fast.inference import load_trained, open_sources, predict_image
    from mdepth_fast.inference.view import MapFiles, record
    from mdepth_fast.models import DepthModel

    if (arguments.weights is None) == (arguments.maps is None):
        raise ValueError("--weights, --maps: expected a network, or the maps that predict has written; one of them")
    if arguments.maps is None and not arguments.input:
        raise ValueError("input: expected images or a video for the network, got none")
    if arguments.K is not None and arguments.view is not None:
        raise ValueError("--K, --view: expected one of them, got both")
    if arguments.output.suffix != ".rrd":
        raise ValueError(f"--output: expected a file that ends in .rrd, got {arguments.output}")
    for name in ("checkpoint", "size"):
        if arguments.maps and getattr(arguments, name):
            raise ValueError(f"--{name}: goes with --weights, not with --maps")
    K = camera(arguments.K)
    poses = None if arguments.poses is None else Trajectory.read(arguments.poses)
    sources = open_sources(arguments.input, limit=arguments.frames) if arguments.input else []
    if len(sources) > 1 or (sources and sources[0].live and arguments.frames is None):
        raise ValueError(f"input: expected images or one video, got {sources[-1].title}")

    source: Any
    mapped: Any
    if arguments.maps:
        mapped = MapFiles(arguments.maps, sources[0].name if sources else "", arguments.frames)
        source = sources[0] if sources else mapped
    else:
        net = load_trained(arguments.weights, pick_device(arguments.device), checkpoint=arguments.checkpoint).net
        if not isinstance(net, DepthModel):
            raise ValueError(f"--weights: expected a network of depth, got {type(net).__name__}")
        source = sources[0]
        predict = partial(predict_image, net, K=K, size=arguments.size)

        def mapped(frame: Any) -> Any:
            return predict(frame.image)

    total = len(source.names) if isinstance(source, MapFiles) else source.length
    with counter("writing", None if total is None else -(-total // arguments.every)) as advance:
        done = record(
            source,
            mapped,
            arguments.output,
            K=K,
            view=arguments.view,
            poses=poses,
            points=arguments.points,
            every=arguments.every,
            advance=advance,
        )
    report_left_out(done)
    path = f", trajectory of {len(poses)} poses" if poses is not None else ""
    print(f"{arguments.output}: {done.frames} frames, {done.points} points{path}; `rerun {arguments.output}` shows it")
    return 3 if done.skipped else 0
