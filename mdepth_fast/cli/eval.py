"""`mdepth-fast eval`."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mdepth_fast.cli._common import add_checkpoint, pick_device, progress

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Evaluate a trained network, or disparities in a file, against ground truth; the table states its protocol."
    )
    parser.usage = (
        "mdepth-fast eval WEIGHTS [--data PRESET] [--protocol NAME] [--flip] [--SECTION.SETTING VALUE ...]\n"
        "       mdepth-fast eval DISPARITIES.npy (--ground-truth FILE.npz | --data PRESET) [--protocol NAME]\n"
        "       mdepth-fast eval WEIGHTS --submission FOLDER --images FOLDER [--flip]"
    )
    parser.epilog = (
        "By default the data come from the run that wrote the checkpoint; --data names another preset. Settings "
        "follow: `mdepth-fast eval weights/mono_640x192 --data kitti_mono --data.root kitti --data.val_split "
        "test_files.txt`."
    )
    parser.add_argument(
        "weights",
        help="checkpoint, run folder, converted .safetensors, hub:user/repo, or folder of Monodepth2's files; or a "
        ".npy file (N,h,w) of disparities, the inverse of depth, in the order of the ground truth",
    )
    add_checkpoint(parser)
    parser.add_argument("--data", metavar="PRESET", help="preset or .yaml file with the data to evaluate on")
    parser.add_argument("--protocol", metavar="NAME", help="evaluation protocol (default: the preset's)")
    parser.add_argument("--flip", action="store_true", help="average with the prediction for the mirrored image")
    parser.add_argument(
        "--scale", type=float, metavar="X", help="multiply predicted depth by this, such as 5.4 for stereo disparities"
    )
    parser.add_argument(
        "--ground-truth",
        type=Path,
        metavar="FILE",
        help="gt_depths.npz to compare disparities with instead of --data",
    )
    parser.add_argument(
        "--save-disparities", type=Path, metavar="FILE", help="also write the predicted disparities as .npy (N,h,w)"
    )
    parser.add_argument(
        "--submission", type=Path, metavar="FOLDER", help="write 16-bit PNGs for KITTI's depth server, evaluate nothing"
    )
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="the server's images, for --submission")
    parser.add_argument("--device", help="cpu, cuda, ... (default: auto)")
    parser.add_argument("-h", "--help", action="help", help="show this help")


def run(arguments: argparse.Namespace) -> None:
    if arguments.scale is not None and not 0 < arguments.scale < float("inf"):
        raise ValueError(f"--scale: expected a positive number, got {arguments.scale}")
    if (arguments.submission is None) != (arguments.images is None):
        raise ValueError("--submission: goes with --images, the folder of the server's images")
    external = arguments.weights.endswith(".npy")
    if arguments.ground_truth and not external:
        raise ValueError(f"--ground-truth: goes with a .npy file of disparities, got {arguments.weights}")
    of_network = ("submission", "save_disparities", "checkpoint", "device", "flip") if external else ()
    for name in of_network:
        if getattr(arguments, name):
            raise ValueError(
                f"--{name.replace('_', '-')}: goes with a network, got a file of disparities, {arguments.weights}"
            )
    if arguments.submission:
        _submit(arguments)
    elif external:
        _evaluate_disparities(arguments)
    else:
        _evaluate(arguments)


def _evaluate(arguments: argparse.Namespace) -> None:
    from mdepth_fast.evaluation import Evaluator
    from mdepth_fast.inference import evaluate, load_trained
    from mdepth_fast.systems import load_config, system_of
    from mdepth_fast.visualize import write_maps

    trained = load_trained(arguments.weights, pick_device(arguments.device or "auto"), checkpoint=arguments.checkpoint)
    preset = arguments.data or trained.config
    if preset is None:
        raise ValueError("--data: published weights do not say what to evaluate on; expected a preset or .yaml file")
    system = system_of(load_config(preset))
    if not isinstance(trained.net, system.net_type):
        raise ValueError(
            f"--data: expected data of the system {trained.system.name}, whose network this is, got those of "
            f"{system.name}"
        )
    config = load_config(preset, [*system.data_settings(trained.net), *arguments.overrides])
    dataset = system.evaluation_data(config)
    if dataset is None:
        where = "--data.val_split, --data.val_root or --data.depth (folder)"
        raise ValueError(f"no ground truth in the data of {config.run}: set {where}")
    evaluator = _evaluator(system.evaluator, arguments, config.protocol)
    if isinstance(evaluator, Evaluator):
        evaluator.ground_truth = _ground_truth(config, dataset, evaluator.protocol)
    if arguments.save_disparities and not isinstance(evaluator, Evaluator):
        raise ValueError(f"--save-disparities: expected a system that predicts depth, got {system.name}")
    kept: list[Any] = []
    sample = system.evaluate_sample
    if arguments.save_disparities:
        sample = _keeping(sample, kept, arguments.save_disparities)
    with progress("evaluating") as track:
        evaluate(trained.net, dataset, evaluator, workers=config.data.workers, track=track, sample=sample)
    if arguments.save_disparities:
        write_maps(arguments.save_disparities, kept)
    _print_table(evaluator, f"the data of {config.run}")


_KITTI_TRUTH = {
    "lidar": "raw LiDAR, depth along the camera's axis (lidar)",
    "lidar_x": "raw LiDAR, its forward coordinate, as published for kitti_eigen (lidar_x)",
    "annotated": "annotated depth of the KITTI depth benchmark (annotated)",
}


def _ground_truth(config: Any, dataset: Any, protocol: Any) -> str:
    """What the ground truth is, and how many frames are left out; a warning where the protocol is for another."""
    import warnings

    data = config.data
    name = getattr(data, "name", config.run)
    kind = {"kitti": getattr(data, "ground_truth", ""), "kitti_depth": "annotated"}.get(name)
    words = _KITTI_TRUTH.get(kind or "", name)
    if name == "nyu_labelled":
        words = f"{name}, {'filled' if data.filled else 'raw'} depth"
    if kind in ("lidar", "lidar_x") and "benchmark" in protocol.name:
        warnings.warn(
            f"protocol {protocol.name} is for annotated depth, the ground truth is raw LiDAR: its figures compare with "
            "no published ones; give --data.ground_truth annotated --data.annotated_root FOLDER",
            stacklevel=2,
        )
    missing = getattr(getattr(dataset, "dataset", dataset), "missing", 0)
    return f"{words}, {missing} frames of missing files left out" if missing else words


def _evaluator(create: Any, arguments: argparse.Namespace, default: str) -> Any:
    """The evaluator of the protocol, with the options that change it."""
    from dataclasses import replace

    evaluator = create(arguments.protocol or default)
    changes = {"flip": True} if arguments.flip else {}
    if arguments.flip and not hasattr(evaluator.protocol, "flip"):
        raise ValueError("--flip: this system has no prediction for mirrored images")
    if arguments.scale is not None:
        if not hasattr(evaluator.protocol, "scale"):
            raise ValueError("--scale: goes with depth, which this system does not predict")
        changes["scale"] = arguments.scale
    return create(replace(evaluator.protocol, **changes)) if changes else evaluator


def _keeping(sample: Callable[..., None], kept: list[Any], path: Path) -> Callable[..., None]:
    """`sample`, which also keeps the inverse of the depth that it hands to the evaluator."""

    class Recorder:
        def __init__(self, evaluator: Any) -> None:
            self.protocol, self.evaluator = evaluator.protocol, evaluator

        def update(self, prediction: Any, *rest: Any, inverse: bool = False) -> Any:
            disparity = (prediction if inverse else 1 / prediction)[0, 0].cpu().numpy()
            if kept and kept[0].shape != disparity.shape:
                raise ValueError(
                    f"--save-disparities: {path} holds maps of one size, got {kept[0].shape} and {disparity.shape}"
                )
            kept.append(disparity)
            return self.evaluator.update(prediction, *rest, inverse=inverse)

    return lambda net, batch, evaluator: sample(net, batch, Recorder(evaluator))


def _evaluate_disparities(arguments: argparse.Namespace) -> None:
    import numpy as np

    from mdepth_fast.data.kitti import read_ground_truth
    from mdepth_fast.evaluation import Evaluator, get_protocol
    from mdepth_fast.systems import load_config, system_of

    path = Path(arguments.weights)
    disparities = _read_disparities(path)

    default, truths, told = "kitti_eigen", None, str(arguments.ground_truth)
    if arguments.data:
        if arguments.ground_truth:
            raise ValueError("--ground-truth: expected this or --data, got both")
        config = load_config(arguments.data, arguments.overrides)
        system = system_of(config)
        if not isinstance(system.evaluator(config.protocol), Evaluator):
            raise ValueError(
                f"--data: expected data with depth to compare disparities with, got those of {system.name}"
            )
        default, dataset = config.protocol, system.evaluation_data(config)
        if dataset is None:
            raise ValueError(f"no ground truth in the data of {config.run}: set --data.val_split")
        told = _ground_truth(config, dataset, get_protocol(arguments.protocol or config.protocol))
        truths = ((sample["name"], sample["depth"]) for sample in dataset)
        count = len(dataset)
    elif arguments.ground_truth:
        if arguments.overrides:
            raise ValueError(f"unrecognized arguments without --data: {' '.join(arguments.overrides)}")
        maps = read_ground_truth(arguments.ground_truth)
        truths, count = ((f"map {index}", one) for index, one in enumerate(maps)), len(maps)
    else:
        raise ValueError("--ground-truth: expected gt_depths.npz or --data, a preset, to compare disparities with")
    if count != len(disparities):
        raise ValueError(f"{path}: expected a map for each of the {count} of the ground truth, got {len(disparities)}")
    evaluator = _evaluator(Evaluator, arguments, default)
    evaluator.ground_truth = told
    with progress("evaluating") as track:
        for index, (name, truth) in zip(track(range(count)), truths):
            # A copy in memory, in this machine's byte order.
            one = np.array(disparities[index], disparities.dtype.newbyteorder("="))
            evaluator.update(one, truth, name, inverse=True)
    _print_table(evaluator, arguments.ground_truth or arguments.data)


def _read_disparities(path: Path) -> Any:
    """The array (N,h,w) in a .npy file, which stays on the disk."""
    import numpy as np

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        # Unlike numpy.load, this takes no other format.
        found: Any = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a damaged header can fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: cannot be read as an array of disparities ({reason:.200})") from error
    if found.ndim == 4 and found.shape[1] == 1:
        found = found[:, 0]
    if found.dtype.kind == "f" and found.dtype.itemsize > 8:
        raise ValueError(f"{path}: expected float16, float32 or float64, got {found.dtype}")
    if found.ndim != 3 or 0 in found.shape or found.dtype.kind != "f":
        raise ValueError(f"{path}: expected floating point (N,h,w), got {found.dtype} of {found.shape}")
    return found


def _print_table(evaluator: Any, where: Any) -> None:
    """ValueError if nothing was evaluated, as a table of NaN is no result."""
    if evaluator.compute().get("images") == 0:
        raise ValueError(f"{where}: expected ground truth to evaluate on, got no valid value in any of it")
    print(evaluator.table())


def _submit(arguments: argparse.Namespace) -> None:
    """Predictions as Monodepth2 submits them: disparity resized to 352x1216, depth up to 80 m, times 256.

    The folder appears when it is complete.
    """
    import torch
    import torch.nn.functional as F

    from mdepth_fast.data.samples import list_images, read_image
    from mdepth_fast.files import making_folder
    from mdepth_fast.inference import load_trained
    from mdepth_fast.kinds import describe, is_inverse
    from mdepth_fast.models import DepthModel
    from mdepth_fast.visualize import write_depth_png

    folder = arguments.submission.resolve()
    if arguments.overrides or arguments.data or arguments.protocol or arguments.save_disparities:
        raise ValueError("--submission: takes neither data nor a protocol nor --save-disparities, only --images")
    if not arguments.images.is_dir():
        raise FileNotFoundError(f"--images: no such folder: {arguments.images}")
    paths = list_images(arguments.images)
    if not paths:
        raise FileNotFoundError(f"--images: no images in {arguments.images}")
    by_stem: dict[str, Path] = {}
    for path in paths:
        if (other := by_stem.setdefault(path.stem, path)) != path:
            raise ValueError(f"--images: expected one image for {path.stem}.png, got {other.name} and {path.name}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--submission: expected a new or empty folder, got {arguments.submission}")
    device = pick_device(arguments.device or "auto")
    net = load_trained(arguments.weights, device, checkpoint=arguments.checkpoint).net
    if not isinstance(net, DepthModel):
        raise ValueError(f"--submission: expected a network that predicts depth, got {type(net).__name__}")
    if is_inverse(net.kind):
        raise ValueError(f"--submission: expected a network that predicts depth, got one of {describe(net.kind)}")
    if net.kind != "metric" and arguments.scale is None:
        raise ValueError("--scale: expected the metres that a unit of the network's depth stands for, got none")
    with making_folder(folder) as temporary, progress("predicting") as track:
        for path in track(paths):
            image = torch.from_numpy(read_image(path)).to(device).permute(2, 0, 1)[None].float() / 255
            disparity = 1 / net.predict(image, flip=arguments.flip).depth
            if disparity.shape[-2:] != _SERVER_SIZE:
                disparity = F.interpolate(disparity, _SERVER_SIZE, mode="bilinear", align_corners=False)
            depth = ((arguments.scale or 1.0) / disparity).clamp(max=_SERVER_DEPTH)
            write_depth_png(temporary / f"{path.stem}.png", depth)
    where = arguments.submission
    print(f"{len(paths)} depth maps in {where}: value = metres * 256, 16-bit PNG, up to {_SERVER_DEPTH:g} m")


_SERVER_SIZE = (352, 1216)
_SERVER_DEPTH = 80.0
