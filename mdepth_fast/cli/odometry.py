"""`mdepth-fast odometry`."""

import argparse
from pathlib import Path
from typing import Any

from mdepth_fast.cli._common import add_checkpoint, pick_device, progress

_BATCH = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Predict the trajectory of the camera from video frames, write it as KITTI and TUM files with a bird's-eye "
        "plot, and evaluate it if there is ground truth. Or evaluate a file of poses, without any network."
    )
    parser.usage = (
        "mdepth-fast odometry WEIGHTS --frames FOLDER [--ground-truth FILE] [--output FOLDER]\n"
        "       mdepth-fast odometry --poses FILE --ground-truth FILE [--output FOLDER]"
    )
    parser.epilog = (
        "Pose files hold camera-to-world poses, a line per frame: KITTI odometry (12 numbers), 4x4 matrices (16) or "
        "TUM (8). `mdepth-fast odometry runs/kitti_mono/001 --frames sequences/09/image_2 --ground-truth poses/09.txt`."
    )
    parser.add_argument(
        "weights",
        nargs="?",
        help="checkpoint or run folder of a self-supervised system, or folder of Monodepth2's files",
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--frames", type=Path, metavar="FOLDER", help="video frames in natural order (default: the run's data.root)"
    )
    parser.add_argument(
        "--intrinsics", type=Path, metavar="FILE", help="3x3 camera matrix, for systems whose motion model needs it"
    )
    parser.add_argument(
        "--times", type=Path, metavar="FILE", help="a timestamp in seconds per frame (default: frame numbers)"
    )
    parser.add_argument("--poses", type=Path, metavar="FILE", help="evaluate these poses instead of a network's")
    parser.add_argument("--ground-truth", type=Path, metavar="FILE", help="true poses")
    parser.add_argument(
        "--alignment",
        choices=("origin", "scale", "se3", "sim3"),
        default="sim3",
        help="alignment before t_rel, r_rel, RPE and the plot: se3 for poses in metres (default: %(default)s)",
    )
    parser.add_argument(
        "--snippet", type=int, default=5, metavar="N", help="frames of a snippet of the ATE (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("odometry"), help="folder to write to (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, help=f"frames per forward pass (default: {_BATCH})")
    parser.add_argument("--workers", type=int, help="processes that decode images (default: 0)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: auto)")


def run(arguments: argparse.Namespace) -> None:
    import json
    import warnings

    from mdepth_fast.data import Trajectory
    from mdepth_fast.evaluation.odometry import ALIGNMENTS, align, associate, evaluate_odometry
    from mdepth_fast.files import replacing
    from mdepth_fast.visualize import draw_trajectories

    of_network = ("checkpoint", "frames", "intrinsics", "times", "batch", "workers", "device")
    given = [name for name in of_network if getattr(arguments, name) is not None]
    if (arguments.weights is None) == (arguments.poses is None):
        raise ValueError("weights: expected a trained system, or --poses FILE instead of one")
    if arguments.poses and given:
        raise ValueError(f"--{given[0]}: goes with a trained system, not with --poses")
    if arguments.poses and not arguments.ground_truth:
        raise ValueError("--ground-truth: expected a file of true poses to evaluate --poses against, got none")
    batch = _BATCH if arguments.batch is None else arguments.batch
    if arguments.snippet < 2 or batch < 1:
        raise ValueError(f"--snippet, --batch: expected at least 2 and at least 1, got {arguments.snippet} and {batch}")
    output: Path = arguments.output
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output: expected a folder, got a file: {output}")
    kitti, tum, plot, record = (
        output / name for name in ("poses_kitti.txt", "poses_tum.txt", "trajectory.png", "metrics.json")
    )
    written = [path.resolve() for path in (kitti, tum, plot, record)]
    for name in ("poses", "ground_truth", "intrinsics", "times"):
        path = getattr(arguments, name)
        if path is not None and path.resolve() in written:
            option = name.replace("_", "-")
            raise ValueError(f"--output: expected a folder where nothing takes the place of --{option}, {path}")
    truth = Trajectory.read(arguments.ground_truth) if arguments.ground_truth else None
    if arguments.poses:
        prediction = Trajectory.read(arguments.poses)
        skipped, unit = "", "unit of the poses"
    else:
        # Timestamps on both sides say which pose belongs to which; otherwise the truth has a row for each frame.
        by_row = truth is not None and not (truth.timed and arguments.times)
        prediction, numbers, total, unit = _predict(arguments, len(truth) if truth is not None and by_row else None)
        if truth is not None and by_row:
            truth = truth[numbers]
        skipped = f" of {total} frames" if total != len(prediction) else ""
    drawn = {"prediction": prediction.from_start().positions}
    labels = {"unit": unit}
    metrics = None
    remark = ""
    if truth is not None:
        if arguments.weights and unit != "m" and arguments.alignment in ("origin", "se3"):
            warnings.warn(
                f"--alignment {arguments.alignment} keeps the scale, but the depth of this network has no unit: the "
                "errors mean something only if it happens to be that of the true poses",
                stacklevel=2,
            )
        paired, truth = associate(prediction, truth)
        if len(paired) < len(prediction):
            remark = f"{len(paired)} of {len(prediction)} poses have ground truth of their time\n"
        truth = truth.from_start()
        metrics = evaluate_odometry(paired, truth, alignment=arguments.alignment, snippet=arguments.snippet)
        aligned = align(paired.poses, truth.poses, arguments.alignment).apply(paired.poses)
        drawn = {"ground truth": truth.positions, "prediction": aligned[:, :3, 3]}
        labels = {"title": f"aligned: {ALIGNMENTS[arguments.alignment]}"}
    draw_trajectories(plot, drawn, **labels)
    record.unlink(missing_ok=True)  # an earlier run's metrics are not those of these poses
    prediction.write_kitti(kitti)
    prediction.write_tum(tum)
    print(f"{len(prediction)} poses{skipped}: {kitti}, {tum}")
    if metrics is None:
        print(f"plot: {plot}; no ground truth, so no metrics")
        return
    with replacing(record) as temporary:
        temporary.write_text(json.dumps(metrics.to_dict(), indent=2, allow_nan=False) + "\n")
    print(f"{remark}{metrics.table()}")
    print(f"metrics: {record}\nplot: {plot}")


def _predict(arguments: argparse.Namespace, rows: int | None) -> tuple[Any, Any, int, str]:
    """The trajectory, the numbers of its frames, how many frames there are, and the unit of the translations.

    There are as many frames as `rows`, unless None.
    """
    import numpy as np

    from mdepth_fast.data import Trajectory
    from mdepth_fast.data.samples import list_images, read_matrices
    from mdepth_fast.inference import load_system, predict_trajectory

    system = load_system(arguments.weights, pick_device(arguments.device or "auto"), checkpoint=arguments.checkpoint)
    data = system.config.data
    frames = arguments.frames
    if frames is None:
        if data.name != "folder" or not isinstance(data.root, str):
            raise ValueError(f"--frames: expected a folder of video frames, as the run's data are {data.name}")
        frames = Path(data.root)
    if not frames.is_dir():
        raise FileNotFoundError(f"{frames}: no such folder")
    count = len(list_images(frames))
    if rows not in (None, count):
        raise ValueError(f"{arguments.ground_truth}: expected a pose for each of the {count} frames, got {rows}")
    times = None
    if arguments.times:
        times = read_matrices(arguments.times, (1,))[:, 0]
        if len(times) != count:
            raise ValueError(f"{arguments.times}: expected a time for each of the {count} frames, got {len(times)}")
    with progress("predicting") as track:
        found = predict_trajectory(
            system,
            frames,
            arguments.intrinsics,
            batch_size=_BATCH if arguments.batch is None else arguments.batch,
            workers=arguments.workers or 0,
            track=track,
        )
    numbers = found.timestamps.astype(np.int64)
    if times is not None:
        found = Trajectory(times[numbers], found.poses, timed=True)
    return found, numbers, count, system.depth_net.unit or "unit of the depth"
