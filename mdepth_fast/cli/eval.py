"""`mdepth-fast eval`."""

import argparse

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Evaluate a trained network against ground truth; the table states its protocol."
    parser.usage = "mdepth-fast eval WEIGHTS [--data PRESET] [--protocol NAME] [--flip] [--SECTION.SETTING VALUE ...]"
    parser.epilog = (
        "By default the data come from the run that wrote the checkpoint; --data names another preset. Settings "
        "follow: `mdepth-fast eval weights/mono_640x192 --data kitti_mono --data.root kitti --data.val_split "
        "test_files.txt`."
    )
    parser.add_argument(
        "weights", help="checkpoint, run folder, converted .safetensors, or folder of Monodepth2's files"
    )
    parser.add_argument(
        "--checkpoint",
        choices=("last", "best"),
        help="checkpoint to use from a run folder (default: last; see trainer.monitor)",
    )
    parser.add_argument("--data", metavar="PRESET", help="preset or .yaml file with the data to evaluate on")
    parser.add_argument("--protocol", metavar="NAME", help="evaluation protocol (default: the preset's)")
    parser.add_argument("--flip", action="store_true", help="average with the prediction for the mirrored image")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: %(default)s)")
    parser.add_argument("-h", "--help", action="help", help="show this help")


def run(arguments: argparse.Namespace) -> None:
    from dataclasses import replace

    from mdepth_fast.cli._common import pick_device, progress
    from mdepth_fast.inference import evaluate, load_trained
    from mdepth_fast.systems import load_config, system_of

    trained = load_trained(arguments.weights, pick_device(arguments.device), checkpoint=arguments.checkpoint)
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
        raise ValueError(f"no ground truth in the data of {config.run}: set --data.val_split, or --data.depth (folder)")
    evaluator = system.evaluator(arguments.protocol or config.protocol)
    if arguments.flip:
        if not hasattr(evaluator.protocol, "flip"):
            raise ValueError(f"--flip: the system {system.name} has no prediction for mirrored images")
        evaluator = system.evaluator(replace(evaluator.protocol, flip=True))
    with progress("evaluating") as track:
        evaluate(
            trained.net, dataset, evaluator, workers=config.data.workers, track=track, sample=system.evaluate_sample
        )
    print(evaluator.table())
