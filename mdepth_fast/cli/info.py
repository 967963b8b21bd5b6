"""`mdepth-fast info`."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Versions and backends, with a reason for each that is missing."


def run(arguments: argparse.Namespace) -> None:
    import mdepth_fast

    print(mdepth_fast.info_text())
