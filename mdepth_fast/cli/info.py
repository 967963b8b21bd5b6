"""`mdepth-fast info`."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Show versions and backends, with the reason for each missing backend."


def run(arguments: argparse.Namespace) -> None:
    import mdepth_fast

    print(mdepth_fast.info_text())
