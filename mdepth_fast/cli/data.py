"""`mdepth-fast data`."""

import argparse
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Look at data, and prepare them."
    verbs = parser.add_subparsers(metavar="verb", required=True)
    _add_check(verbs)
    _add_prepare(verbs)


def run(arguments: argparse.Namespace) -> None:
    arguments.run_verb(arguments)


def _add_check(verbs: Any) -> None:
    text = "report on a folder of frames: sizes, intrinsics, motion, static pairs, broken files"
    parser = verbs.add_parser("check", help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
    parser.set_defaults(run_verb=_check)
    parser.add_argument("folder", type=Path, help="folder of frames in natural order of their names")
    parser.add_argument(
        "--intrinsics", type=Path, metavar="FILE", help="3x3 camera matrix (default: K.txt in the folder)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report to a JSON file")


def _check(arguments: argparse.Namespace) -> None:
    import json

    from mdepth_fast.cli._common import progress
    from mdepth_fast.data.check import check_folder
    from mdepth_fast.files import replacing

    if arguments.intrinsics and not arguments.intrinsics.is_file():
        raise FileNotFoundError(f"--intrinsics: no such file: {arguments.intrinsics}")
    with progress("reading") as track:
        report = check_folder(arguments.folder, arguments.intrinsics, track=track)
    if arguments.json:
        with replacing(arguments.json) as temporary:
            temporary.write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    print(report.table())


def _add_prepare(verbs: Any) -> None:
    text = "make a folder to train on from a video or a folder of images"
    parser = verbs.add_parser(
        "prepare",
        help=text,
        description="Make a folder to train on from a video or a folder of images: resized frames without static ones, "
        "K.txt and split files. The folder appears when it is complete.",
        allow_abbrev=False,
    )
    parser.set_defaults(run_verb=_prepare)
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
