"""`mdepth-fast predict`."""

import argparse
import os
from pathlib import Path
from typing import Any

from mdepth_fast.cli._common import add_checkpoint, camera, count, counter, pick_device, progress, report_left_out, size
from mdepth_fast.cli.weights import add_licence, download_bar
from mdepth_fast.engines import DTYPES, ENGINES, OF_ONNX


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write predicted depth for images, videos, WebDataset shards or a camera: depth maps and a colour image for "
        "each image, a coloured video for each video. A network of optical flow writes the flow from each image to the "
        "next."
    )
    parser.epilog = (
        "A command that was interrupted or killed goes on when it is given again, and repeats nothing. Under torchrun "
        "the processes share the frames. Exit code 3: done, but some frames could not be read and were left out."
    )
    parser.add_argument(
        "weights",
        help="checkpoint, run folder, converted .safetensors, folder of save_pretrained, hub:user/repo, folder of "
        "Monodepth2's files, or name of published weights (mdepth-fast weights list); --weights NAME says the same",
    )
    parser.add_argument(
        "input",
        nargs="+",
        help="images, a folder of images, videos, shards (.tar), the number of a camera, or quoted patterns such as "
        '"clips/*.mp4"; for flow at least two images, or a folder of images',
    )
    add_checkpoint(parser)
    add_licence(parser)
    files = parser.add_argument_group("files")
    files.add_argument(
        "--output", type=Path, default=Path("predictions"), help="folder to write to (default: %(default)s)"
    )
    files.add_argument(
        "--format",
        action="append",
        metavar="FORMAT[,...]",
        help="depth: one or several of png (16 bits), npy, tiff (both float32), ply (point cloud, needs --K), and "
        "color; the default is png for images and color for videos. flow: flo (Middlebury, default) or png (KITTI)",
    )
    files.add_argument("--no-color", action="store_true", help="depth: no colour images beside the maps, no video")
    files.add_argument(
        "--scale",
        type=float,
        default=256.0,
        help="PNG value for a depth of 1; the default is KITTI's (default: %(default)g)",
    )
    files.add_argument(
        "--range",
        choices=("frame", "clip"),
        help="scale the colours to each frame, or to a sample of all frames so that they do not flicker (default: "
        "frame for images, clip for videos; a camera's range follows its frames slowly)",
    )
    files.add_argument("--side-by-side", action="store_true", help="show the image beside its colours")
    files.add_argument(
        "--overwrite", action="store_true", help="replace what another run, or a finished one, has written there"
    )
    network = parser.add_argument_group("prediction")
    network.add_argument(
        "--size",
        type=size,
        metavar="HxW",
        help="size of the network input, multiples of 32, for flow of 64, for Depth Anything of 14 (default: as "
        "trained)",
    )
    network.add_argument(
        "--K",
        metavar="FX,FY,CX,CY|FILE",
        help="camera in pixels of the input, or file of its 3x3 matrix; stored with the maps, and used by networks "
        "that take it",
    )
    network.add_argument(
        "--white-level",
        type=float,
        metavar="VALUE",
        help="value that is white in images of more than 8 bits, such as 4095 for a camera of 12 bits (default: 65535, "
        "or 1 in floating point)",
    )
    network.add_argument(
        "--temporal",
        action="store_true",
        help="align the scale of each frame (and the shift of inverse depth) to the frames before it",
    )
    network.add_argument("--frames", type=count, metavar="N", help="stop after the first N frames of each input")
    network.add_argument(
        "--batch-size", type=count, metavar="N", help="frames at a time (default: 8 on a GPU, 1 on the CPU)"
    )
    network.add_argument(
        "--optimize", action="store_true", help="fold batch norms into convolutions: faster, equal up to rounding"
    )
    network.add_argument(
        "--engine",
        choices=("auto", *ENGINES),
        help="what runs the network: native is --optimize, torch PyTorch as it is, onnxruntime and openvino are extras "
        "for the CPU; auto takes the fastest that is installed and was measured on this kind of machine (default: "
        "torch)",
    )
    network.add_argument(
        "--precision",
        choices=DTYPES,
        help="bfloat16 only on hardware with units for it, good to 2 or 3 digits (default: that of the weights)",
    )
    network.add_argument("--half", action="store_true", help="half precision: faster on a GPU, good to 2 or 3 digits")
    network.add_argument("--device", default="auto", help="cpu, cuda, ... (default: %(default)s)")


def reordered(words: list[str]) -> list[str]:
    """`--weights NAME` as the first argument, which it is without the option."""
    for number, word in enumerate(words):
        if word == "--weights" and number + 1 < len(words):
            return [words[number + 1], *words[:number], *words[number + 2 :]]
        if word.startswith("--weights="):
            return [word.removeprefix("--weights="), *words[:number], *words[number + 1 :]]
    return words


def run(arguments: argparse.Namespace) -> int:
    from mdepth_fast.inference import load_trained
    from mdepth_fast.inference.frames import ImageFiles, open_sources
    from mdepth_fast.inference.stream import Ranks, StreamOptions, predict_source
    from mdepth_fast.models import DepthModel

    output = arguments.output
    if any(Path(text).is_dir() and Path(text).resolve() == output.resolve() for text in arguments.input):
        raise ValueError(f"--output: expected another folder than the input, got {output}")
    sources = open_sources(arguments.input, limit=arguments.frames, white_level=arguments.white_level)
    formats = [name.strip() for text in arguments.format or () for name in text.split(",")]
    device = arguments.device
    if device == "auto" and "LOCAL_RANK" in os.environ and _gpus():
        device = f"cuda:{int(os.environ['LOCAL_RANK']) % _gpus()}"
    device = pick_device(device)
    engine = _engine(arguments)
    with download_bar(arguments.weights) as bar:
        trained = load_trained(
            arguments.weights,
            device,
            checkpoint=arguments.checkpoint,
            accept_licence=arguments.accept_licence,
            progress=bar,
        )
    if engine:
        trained.net = trained.net.optimize_for_inference(engine=engine, dtype=arguments.precision or "auto")
    if arguments.engine == "auto":
        print(f"engine: {trained.net.runs_on[0]}")
    if not isinstance(trained.net, DepthModel):
        return _run_pairs(trained, sources, formats, arguments)

    net = trained.net
    ranks, K = Ranks(), camera(arguments.K)
    code = 0
    for source in sources:
        chosen = formats or ([] if source.clip else ["png"])
        options = StreamOptions(
            output,
            tuple(dict.fromkeys(chosen + ["color"] * (not arguments.no_color))),
            scale=arguments.scale,
            one_range=None if arguments.range is None else arguments.range == "clip",
            side_by_side=arguments.side_by_side,
            size=arguments.size,
            K=K,
            temporal=arguments.temporal,
            batch_size=arguments.batch_size or (8 if device.type == "cuda" and not source.live else 1),
            half=arguments.half,
            overwrite=arguments.overwrite,
        )
        if source.live and source.length is None:
            print(f"{source.title}: until Ctrl-C, into {output}")
        title = "predicting" if isinstance(source, ImageFiles) else source.title
        total = None if source.length is None else -(-source.length // ranks.world)
        with counter(title, total, quiet=ranks.rank > 0) as advance:
            done = predict_source(net, source, options, ranks=ranks, advance=advance)
        if done.skipped:
            code = 3
        if ranks.rank == 0:
            _report(done, options)
    ranks.close()
    return code


def _engine(arguments: argparse.Namespace) -> str | None:
    """The engine that the arguments ask for, None for the network as it was loaded."""
    engine: str | None = arguments.engine or ("native" if arguments.optimize else None)
    if arguments.optimize and engine != "native":
        raise ValueError(f"--optimize: is --engine native, expected it without --engine {engine}")
    if arguments.half and (arguments.precision or engine in (*OF_ONNX, "auto")):
        other = f"--precision {arguments.precision}" if arguments.precision else f"--engine {engine}"
        raise ValueError(f"--half: expected it without {other}")
    return engine or ("torch" if arguments.precision else None)


def _run_pairs(trained: Any, sources: list[Any], formats: list[str], arguments: argparse.Namespace) -> int:
    """A system that reads images by the pair and writes its own files."""
    from mdepth_fast.inference.frames import ImageFiles
    from mdepth_fast.systems import PredictOptions

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("torchrun: expected one process for a network of this kind, got several")
    if len(sources) > 1 or not isinstance(sources[0], ImageFiles):
        raise ValueError(
            "input: expected images for a network of this kind, whose frames `mdepth-fast data prepare` takes out of a "
            f"video; got {sources[-1].title}"
        )
    if len(formats) > 1:
        raise ValueError(f"--format: expected one for a network of this kind, got {', '.join(formats)}")
    for name, value in (
        ("--no-color", arguments.no_color),
        ("--side-by-side", arguments.side_by_side),
        ("--temporal", arguments.temporal),
        ("--K", arguments.K),
    ):
        if value:
            raise ValueError(f"{name}: expected a network of depth, got {type(trained.net).__name__}")
    options = PredictOptions(
        arguments.output, progress, format=formats[0] if formats else None, size=arguments.size, scale=arguments.scale
    )
    for line in trained.system.write_predictions(trained.net, sources[0].paths, options):
        print(line)
    return 0


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _report(done: Any, options: Any) -> None:
    """Says what is in which files, and on stderr what is missing."""
    from mdepth_fast.kinds import describe

    total, scale = done.frames + done.there, options.scale
    before = f" ({done.there} from an earlier run)" if done.there and done.frames else ""
    what = describe(done.kind) if done.kind == "disparity" else f"{done.kind.replace('_', ' ')} depth"
    # A network learns the focal length along with the sizes of things.
    suits = " for cameras like that of its training" if done.kind == "metric" else ""
    unit = f"in {done.unit}{suits}" if done.unit else "without unit, its scale is unknown"
    forms = {
        "png": f"= value / {scale:g}, 16-bit PNG, 0 = none",
        "npy": "as float32 npy",
        "tiff": "as float32 TIFF",
        "ply": "as point clouds, PLY",
    }
    for name, form in forms.items():
        if name in options.formats:
            print(f"{total} depth maps in {options.output}{before}: {what} {form}, {unit}")
    if done.video:
        print(f"{done.video}: {total} frames{before}, {what} {unit}")
    elif options.formats == ("color",):
        print(f"{total} colour images in {options.output}{before}: {what} {unit}")
    if done.clamped:
        print(f"{done.clamped} pixels were clamped to {1 / scale:g} .. {65535 / scale:g}: 16 bits")
    report_left_out(done)
