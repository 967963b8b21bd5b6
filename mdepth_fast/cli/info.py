"""`mdepth-fast info`."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show versions and backends, with the reason for each missing backend; or, with --models, the networks."
    )
    parser.add_argument(
        "--models",
        nargs="?",
        const="*",
        metavar="PATTERN",
        help="list the registered networks, or those that match a quoted pattern such as 'dpt*': parameters, input "
        "size and what they predict",
    )


def run(arguments: argparse.Namespace) -> None:
    import mdepth_fast

    print(mdepth_fast.info_text() if arguments.models is None else _models(arguments.models))


def _models(pattern: str) -> str:
    """A table of the networks whose names match."""
    import torch

    from mdepth_fast.kinds import describe
    from mdepth_fast.models import DepthModel, FlowModel, create_model, list_models

    rows = [("model", "parameters", "input", "output")]
    for name in list_models(pattern):
        with torch.device("meta"):
            net = create_model(name)
        # A network with a target size keeps the images' aspect ratio.
        sizes = [("", getattr(net, "input_size", None)), ("about ", getattr(net, "target_size", None))]
        size = next((f"{about}{one[0]}x{one[1]}" for about, one in sizes if one), "any")
        output = "motion of the camera"
        if isinstance(net, DepthModel):
            output = describe(net.kind)
        elif isinstance(net, FlowModel):
            output = "optical flow in px"
        count = sum(parameter.numel() for parameter in net.parameters())
        rows.append((name, f"{count:,}", size, output))
    if len(rows) == 1:
        raise ValueError(f"--models: no network is called like {pattern!r}; without a pattern it lists all")
    first, second, third = (max(len(row[column]) for row in rows) for column in range(3))
    return "\n".join(f"{a:<{first}}  {b:>{second}}  {c:<{third}}  {d}" for a, b, c, d in rows)
