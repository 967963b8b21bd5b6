"""`mdepth-fast data VERB`.

A verb is a function that adds its arguments to a parser and one that runs it, in `_VERBS`.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from mdepth_fast.cli._common import count

TAKES_OVERRIDES = True  # of `pack`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Check and prepare data."
    parser.add_argument("-h", "--help", action="help", help="show this help")
    parser.set_defaults(parser=parser)
    verbs = parser.add_subparsers(metavar="verb", dest="verb", required=True)
    for name, (about, add, _) in _VERBS.items():
        add(verbs.add_parser(name, help=about, allow_abbrev=False))


def run(arguments: argparse.Namespace) -> int | None:
    if arguments.verb == "pack":
        return _pack(arguments)
    if arguments.overrides:
        arguments.parser.error(f"unrecognized arguments: {' '.join(arguments.overrides)}")
    _VERBS[arguments.verb][2](arguments)
    return None


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


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.description = "Report on a folder of frames: sizes, intrinsics, motion, static pairs, broken files."
    parser.add_argument("folder", type=Path, help="folder of frames in natural order of their names")
    parser.add_argument(
        "--intrinsics", type=Path, metavar="FILE", help="3x3 camera matrix (default: K.txt in the folder)"
    )
    parser.add_argument("--depth", type=Path, metavar="FOLDER", help="measured depth: report range, median and share")
    parser.add_argument(
        "--units-per-metre", type=float, default=1000.0, metavar="X", help="of 16-bit depth (default: %(default)g)"
    )
    parser.add_argument(
        "--encoding",
        choices=("metres", "sunrgbd", "uint8"),
        default="metres",
        help="of whole numbers in depth images (default: metres times the units)",
    )
    parser.add_argument(
        "--invalid-value", type=float, metavar="X", help="stored where there is no depth, besides 0, such as 65535"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report to a JSON file")


def _check(arguments: argparse.Namespace) -> None:
    import json

    from mdepth_fast.cli._common import progress
    from mdepth_fast.data.check import check_folder
    from mdepth_fast.data.samples import read_depth
    from mdepth_fast.files import replacing

    if arguments.intrinsics and not arguments.intrinsics.is_file():
        raise FileNotFoundError(f"--intrinsics: no such file: {arguments.intrinsics}")

    def metres(path: Path) -> Any:
        return read_depth(
            path, arguments.units_per_metre, encoding=arguments.encoding, invalid_value=arguments.invalid_value
        )

    with progress("reading") as track:
        report = check_folder(
            arguments.folder, arguments.intrinsics, depth=arguments.depth, read_depth=metres, track=track
        )
    if arguments.json:
        with replacing(arguments.json) as temporary:
            temporary.write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    print(report.table())


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make a folder to train on from a video or a folder of images: resized frames without static ones, K.txt and "
        "split files. The folder appears when it is complete."
    )
    parser.add_argument("source", type=Path, help="video file, or folder of images in natural order of their names")
    parser.add_argument("output", type=Path, help="folder to make")
    parser.add_argument("--width", type=int, default=640, help="width of the frames, at most (default: %(default)s)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="keep every N-th frame (default: all)")
    camera = parser.add_mutually_exclusive_group()
    camera.add_argument("--intrinsics", type=Path, metavar="FILE", help="3x3 camera matrix in pixels of the source")
    camera.add_argument("--focal", type=float, metavar="PIXELS", help="focal length in pixels of the source")
    camera.add_argument("--fov", type=float, metavar="DEGREES", help="horizontal field of view")
    parser.add_argument("--keep-static", action="store_true", help="keep frames that have not moved")
    parser.add_argument("--val", type=float, default=0.1, help="share of frames for validation (default: %(default)s)")


def _prepare(arguments: argparse.Namespace) -> None:
    from mdepth_fast.data.prepare import prepare_frames

    done = prepare_frames(
        arguments.source,
        arguments.output,
        width=arguments.width,
        every=arguments.every,
        intrinsics=arguments.intrinsics,
        focal=arguments.focal,
        fov=arguments.fov,
        keep_static=arguments.keep_static,
        val_share=arguments.val,
    )
    output, (height, width) = done.output, done.size
    print(f"{output}: {done.kept} frames of {width}x{height} (width x height), {done.static} static ones left out")
    known = f"K.txt: fx {done.K[0, 0]:.5g}, fy {done.K[1, 1]:.5g}, cx {done.K[0, 2]:.5g}, cy {done.K[1, 2]:.5g}"
    if done.guessed:
        known += "; a GUESS (60 degrees across, centred): depth will be wrong as far as it is. Give --focal, --fov or "
        known += "--intrinsics"
    print(known)
    print(f"train_files.txt: {done.train} frames, val_files.txt: {done.val}")
    print(f"next: mdepth-fast data check {output}")
    print(f"      mdepth-fast train folder --data.root={output} --data.split={output / 'train_files.txt'}")


def _add_pack(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write the samples of any data set as WebDataset shards, which `data.name: webdataset` reads. The data are "
        "those of a preset, with its settings as options, such as --data.root; what is read is the same bit by bit. A "
        "command that was interrupted goes on when it is given again. Under torchrun the processes share the shards. "
        "Exit code 3: done, but some samples could not be read and were left out."
    )
    parser.add_argument("preset", help="a preset (`mdepth-fast train --help` lists them) or a .yaml file")
    parser.add_argument("output", type=Path, help="folder to write, new or of an unfinished run")
    parser.add_argument(
        "--part", choices=("train", "val"), default="train", help="training or validation data (default: %(default)s)"
    )
    parser.add_argument("--shard-size", type=count, default=500, metavar="N", help="samples a file (default: 500)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that decode (default: 0)")


def _pack(arguments: argparse.Namespace) -> int:
    from mdepth_fast.cli._common import counter
    from mdepth_fast.data.shards import pack
    from mdepth_fast.systems import load_config, system_of

    config = load_config(arguments.preset, arguments.overrides)
    dataset = system_of(config).packed_data(config, arguments.part)
    if dataset is None:
        raise ValueError(f"--part: {arguments.preset} has no validation data")
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    with counter("packing", -(-len(dataset) // world), quiet=rank > 0) as advance:
        broken = pack(
            dataset,
            arguments.output,
            shard_size=arguments.shard_size,
            workers=arguments.workers,
            skip_bad=config.data.skip_bad,
            rank=rank,
            world_size=world,
            advance=advance,
        )
    print(f"{arguments.output}: {len(dataset)} samples, {-(-len(dataset) // arguments.shard_size)} shards")
    if broken:
        print(f"mdepth-fast: warning: {broken} samples could not be read and were left out", file=sys.stderr)
    return 3 if broken else 0


_VERBS = {
    "check": ("report on a folder of frames: motion, intrinsics, broken files", _add_check, _check),
    "prepare": ("make a folder to train on from a video or a folder of images", _add_prepare, _prepare),
    "pack": ("write a data set as WebDataset shards", _add_pack, _pack),
    "ground-truth": ("write the ground truth of a split of KITTI as gt_depths.npz", _add_ground_truth, _ground_truth),
}
