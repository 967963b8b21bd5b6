"""`mdepth-fast demo`."""

import argparse

from mdepth_fast.cli._common import add_checkpoint, count, pick_device, size


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 65535, got {text!r}")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show a page in the browser that predicts depth for an image or a picture of the webcam, with a point cloud to "
        "turn and files to download. It runs on this machine, for this machine, until Ctrl-C."
    )
    parser.add_argument(
        "weights",
        nargs="+",
        metavar="WEIGHTS",
        help="networks to choose from: checkpoint, run folder, converted .safetensors, folder of save_pretrained, "
        "hub:user/repo, or folder of Monodepth2's files",
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--port", type=_port, default=7860, help="port of the page, 0 for one that is free (default: %(default)s)"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; any other than the default lets others use the page, without a password (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--max-megabytes", type=count, default=20, metavar="N", help="largest file to take (default: %(default)s)"
    )
    parser.add_argument(
        "--max-megapixels", type=count, default=25, metavar="N", help="largest image to take (default: %(default)s)"
    )
    parser.add_argument(
        "--size",
        type=size,
        metavar="HxW",
        help="size of the networks' input, multiples of 32, for Depth Anything of 14 (default: as trained)",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    import ipaddress
    import os
    import sys
    import tempfile
    from contextlib import suppress
    from pathlib import Path

    # Read when gradio is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "0"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with tempfile.TemporaryDirectory(prefix="mdepth-fast-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        import gradio  # noqa: F401  (before weights are read, so that its absence shows at once)

        from mdepth_fast.inference import load_trained
        from mdepth_fast.inference.demo import Demo, bind, serve
        from mdepth_fast.models import DepthModel

        with bind(arguments.host, arguments.port) as listening:
            address, port = listening.getsockname()[:2]
            if not ipaddress.ip_address(address).is_loopback:
                print(
                    f"mdepth-fast: warning: --host {arguments.host}: whoever reaches this machine can use the page, "
                    "there is no password",
                    file=sys.stderr,
                )
            device = pick_device(arguments.device)
            nets = {}
            for weights in dict.fromkeys(arguments.weights):
                net = load_trained(weights, device, checkpoint=arguments.checkpoint).net
                if not isinstance(net, DepthModel):
                    raise ValueError(f"{weights}: expected a network of depth, got {type(net).__name__}")
                nets[weights] = net
            demo = Demo(
                nets, Path(folder) / "predictions", pixels=arguments.max_megapixels * 1_000_000, size=arguments.size
            )
            host = f"[{address}]" if ":" in address else address
            print(f"http://{host}:{port}/ shows {', '.join(nets)}, until Ctrl-C", flush=True)
            with suppress(KeyboardInterrupt):
                serve(demo, listening, megabytes=arguments.max_megabytes)
