"""`mdepth-fast eval`."""

import argparse

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Evaluate a trained network against ground truth; the table states its protocol."
    parser.usage = "mdepth-fast eval WEIGHTS [--data PRESET] [--protocol NAME] [--flip] [--SECTION.SETTING VALUE ...]"
    parser.epilog = (
        "The data are those of the run that wrote the checkpoint, or of the preset given by --data; settings follow: "
        "`mdepth-fast eval weights/mono_640x192 --data kitti_mono --data.root kitti --data.val_split test_files.txt`."
    )
    parser.add_argument(
        "weights", help="checkpoint, run folder, converted .safetensors, or folder of Monodepth2's files"
    )
    parser.add_argument("--data", metavar="PRESET", help="preset or .yaml file that says what to evaluate on")
    parser.add_argument("--protocol", metavar="NAME", help="evaluation protocol, instead of the preset's")
    parser.add_argument("--flip", action="store_true", help="average with the prediction of the mirrored image")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: %(default)s)")
    parser.add_argument("-h", "--help", action="help", help="show this help")


def run(arguments: argparse.Namespace) -> None:
    from dataclasses import replace

    from mdepth_fast.cli._common import pick_device, progress
    from mdepth_fast.evaluation import Evaluator, get_protocol
    from mdepth_fast.models import DisparityModel
    from mdepth_fast.training.config import SelfSupervisedConfig, load_config
    from mdepth_fast.training.setup import evaluation_data
    from mdepth_fast.training.trained import evaluate, load_trained

    trained = load_trained(arguments.weights, pick_device(arguments.device))
    preset = arguments.data or trained.config
    if preset is None:
        raise ValueError("--data: published weights do not say what to evaluate on; expected a preset or .yaml file")
    size = []
    if isinstance(load_config(preset), SelfSupervisedConfig) and isinstance(trained.net, DisparityModel):
        # Such data are resized to what the network was trained at, unless an override says otherwise; another network
        # takes the images as the files have them.
        size = [f"--data.{name}={value}" for name, value in zip(("height", "width"), trained.net.input_size or ())]
    config = load_config(preset, [*size, *arguments.overrides])
    dataset = evaluation_data(config)
    if dataset is None:
        raise ValueError(f"no ground truth in the data of {config.run}: set --data.val_split, or --data.depth (folder)")
    protocol = get_protocol(arguments.protocol or config.protocol)
    if arguments.flip:
        protocol = replace(protocol, flip=True)
    evaluator = Evaluator(protocol)
    with progress("evaluating") as track:
        evaluate(trained.net, dataset, evaluator, workers=config.data.workers, track=track)
    print(evaluator.table())
