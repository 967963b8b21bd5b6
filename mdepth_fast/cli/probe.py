"""`mdepth-fast probe`."""

import argparse
from pathlib import Path

from mdepth_fast.cli._common import add_checkpoint, pick_device, progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show what a depth network sees (van Dijk and de Croon, ICCV 2019): edit road frames, and measure how the "
        "prediction follows. Writes report.json, report.png and the edited frames of the first one."
    )
    parser.add_argument(
        "weights", help="checkpoint, run folder, converted .safetensors, hub:user/repo, or folder of Monodepth2's files"
    )
    parser.add_argument("input", type=Path, help="an image, or a folder of images, of a flat road ahead")
    add_checkpoint(parser)
    parser.add_argument(
        "--intrinsics", type=Path, help="file of the 3x3 camera matrix in pixels of the frames (default: K.txt beside)"
    )
    parser.add_argument("--horizon", type=float, help="row of the horizon (default: cy, which a level camera has)")
    parser.add_argument(
        "--camera-height", type=float, default=1.65, help="metres above the road (default: %(default)g, KITTI's)"
    )
    parser.add_argument(
        "--obstacle", type=Path, help="PNG with transparency of an object to insert (default: a drawn car)"
    )
    parser.add_argument(
        "--obstacle-width", type=float, default=1.8, help="width of that object in metres (default: %(default)g)"
    )
    parser.add_argument(
        "--distance", type=float, help="first distance of the obstacle in metres (default: a third of the way down)"
    )
    parser.add_argument(
        "--pitch", type=int, default=30, help="largest shift of the crop in rows (default: %(default)d)"
    )
    parser.add_argument("--roll", type=float, default=10.0, help="largest roll, degrees (default: %(default)g)")
    parser.add_argument("--frames", type=int, default=20, help="frames to use, evenly spaced (default: %(default)d)")
    parser.add_argument("--experiments", help="names, separated by commas (default: all)")
    parser.add_argument("--output", type=Path, default=Path("probe"), help="folder to write to (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    import numpy as np
    import torch

    from mdepth_fast.data.frames import read_intrinsics
    from mdepth_fast.data.samples import list_images, read_image
    from mdepth_fast.inference import load_trained
    from mdepth_fast.kinds import is_inverse
    from mdepth_fast.probe import (
        Setting,
        car_from_behind,
        draw_examples,
        draw_report,
        probe,
        read_obstacle,
        summary,
        write_report,
    )

    source = arguments.input
    if source.is_dir():
        paths = list_images(source)
        if not paths:
            raise FileNotFoundError(f"{source}: no images in this folder")
    elif source.is_file():
        paths = [source]
    else:
        raise FileNotFoundError(f"{source}: no such image or folder")
    if arguments.frames < 1:
        raise ValueError(f"--frames: expected at least 1, got {arguments.frames}")
    if len(paths) > arguments.frames:
        paths = [paths[round(i)] for i in np.linspace(0, len(paths) - 1, arguments.frames)]
    intrinsics = arguments.intrinsics or (source if source.is_dir() else source.parent) / "K.txt"
    if not intrinsics.is_file():
        raise FileNotFoundError(f"--intrinsics: no such file: {intrinsics}; expected the 3x3 camera matrix in pixels")
    K = read_intrinsics(intrinsics)

    device = pick_device(arguments.device)
    net = load_trained(arguments.weights, device, checkpoint=arguments.checkpoint).net
    if not hasattr(net, "predict") or not hasattr(net, "kind"):
        raise ValueError(f"weights: expected a network that predicts depth, got {type(net).__name__}")
    inverse = is_inverse(net.kind)

    def predict(frame: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(np.ascontiguousarray(frame, np.float32)).permute(2, 0, 1).to(device)
        values: np.ndarray = net.predict(image).depth[0, 0].double().cpu().numpy()
        return values if inverse else 1 / values

    setting = Setting(
        focal=float(K[1, 1]),
        centre=(float(K[0, 2]), float(K[1, 2])),
        horizon=arguments.horizon,
        camera_height=arguments.camera_height,
        obstacle_width=arguments.obstacle_width,
        obstacle=read_obstacle(arguments.obstacle) if arguments.obstacle else car_from_behind(),
        distance=arguments.distance,
        pitch=arguments.pitch,
        roll=arguments.roll,
        inverse="affine" if net.kind == "affine_inverse" else "depth",
    )
    names = arguments.experiments.split(",") if arguments.experiments else None
    with progress("probing") as track:
        frames = ((path.name, read_image(path) / 255.0) for path in track(paths))
        report = {"model": str(arguments.weights), **probe(predict, frames, setting, names)}
    write_report(arguments.output / "report.json", report)
    draw_report(arguments.output / "report.png", report)
    draw_examples(arguments.output / "examples.png", read_image(paths[0]) / 255.0, predict, setting)
    print(summary(report))
    print(f"report.json, report.png and examples.png in {arguments.output}")
