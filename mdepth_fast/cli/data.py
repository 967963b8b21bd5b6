"""`mdepth-fast data VERB`.

A verb is a function that adds its arguments to a parser and one that runs it, in `_VERBS`.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Prepare data sets."
    verbs = parser.add_subparsers(metavar="verb", dest="verb", required=True)
    for name, (about, add, _) in _VERBS.items():
        add(verbs.add_parser(name, help=about, allow_abbrev=False))


def run(arguments: argparse.Namespace) -> None:
    _VERBS[arguments.verb][2](arguments)


def _add_ground_truth(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write the ground truth of a split of KITTI as gt_depths.npz: under the key `data` an array of depth maps in "
        "metres, 0 = none, each at the size of its image, in the order of the split. Monodepth2's scripts read it, and "
        "`mdepth-fast eval --ground-truth`. The published ground truth of `eigen` is --depth x, that of "
        "`eigen_benchmark` is --depth annotated."
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of the raw data (2011_09_26/...)")
    parser.add_argument("--split", type=Path, required=True, help='file of lines "folder index side"')
    parser.add_argument(
        "--output", type=Path, default=Path("gt_depths.npz"), help="file to write (default: %(default)s)"
    )
    parser.add_argument(
        "--depth",
        choices=("x", "z", "annotated"),
        default="x",
        help="x, the LiDAR's forward coordinate, as in the published eigen numbers; z, depth along the camera's axis; "
        "annotated, for eigen_benchmark (default: %(default)s)",
    )
    parser.add_argument(
        "--annotated-root",
        type=Path,
        metavar="FOLDER",
        help="folder of the annotated depth, with train/ and val/ (default: the drives of the raw data)",
    )


def _ground_truth(arguments: argparse.Namespace) -> None:
    import numpy as np

    from mdepth_fast.cli._common import progress
    from mdepth_fast.data.kitti import KittiGroundTruth
    from mdepth_fast.files import replacing

    output, kind = arguments.output, {"x": "lidar_x", "z": "lidar", "annotated": "annotated"}[arguments.depth]
    if output.suffix != ".npz":
        raise ValueError(f"--output: expected a file named *.npz, got {output}")
    if arguments.annotated_root and kind != "annotated":
        raise ValueError(f"--annotated-root: goes with --depth annotated, got --depth {arguments.depth}")
    for option in ("root", "annotated_root"):
        folder = getattr(arguments, option)
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(f"--{option.replace('_', '-')}: no such folder: {folder}")
    annotated = (arguments.annotated_root or arguments.root) if kind == "annotated" else None
    truth = KittiGroundTruth(arguments.root, arguments.split, kind, annotated)
    maps = np.empty(len(truth), dtype=object)  # of maps of different sizes
    with progress("reading") as track:
        for index in track(range(len(truth))):
            maps[index] = truth[index]
    with replacing(output) as temporary:
        np.savez_compressed(temporary, data=maps)
    print(f"{output}: {len(maps)} depth maps, {kind} of {arguments.split}")


_VERBS = {
    "ground-truth": ("write the ground truth of a split of KITTI as gt_depths.npz", _add_ground_truth, _ground_truth),
}
