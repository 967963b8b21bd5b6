"""Trains the self-supervised systems on ray-cast rooms and measures them on held-out ones: results/<device>/.

python benches/train_synthetic.py [preset ...]      each against the predictor of one constant depth, median-aligned
python benches/train_synthetic.py --backends        Monodepth2 with fused and with reference losses, two seeds each

Each preset takes minutes on a CPU. The figures are AbsRel on 50 rooms that no system has seen.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mdepth_fast import use_backend
from mdepth_fast.bench import report
from mdepth_fast.evaluation import get_protocol
from mdepth_fast.inference import evaluate, load_trained
from mdepth_fast.models import DepthPrediction
from mdepth_fast.systems import load_config, system_of
from mdepth_fast.training.run import train

RESULTS, README = Path(__file__).parent / "results", Path(__file__).parents[1] / "README.md"
MONO = ["--data.sources=[-1,1]", "--protocol=synthetic_median"]
# Overrides of presets; the others train as they are.
RUNS: dict[str, list[str]] = {
    "synthetic": [*MONO, "--trainer.max_epochs=8", "--optimizer.step_size=6"],
    "vid2depth_synthetic": [],
    "sfmlearner_synthetic": [],
}
SEEDS = (0, 1)


class ConstantDepth(nn.Module):
    """Predicts a depth of 1 everywhere: after median alignment, the median of the ground truth."""

    takes_views = True

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def predict(self, images: Tensor, *, size: Any = None, flip: bool = False) -> DepthPrediction:
        return DepthPrediction(torch.ones_like(images[:, :1]), "relative", None)


def measure(net: Any, config: Any) -> float:
    """AbsRel of a network on the held-out rooms of a configuration, median-aligned."""
    system = system_of(config)
    evaluator = system.evaluator(replace(get_protocol("synthetic"), name="synthetic_median", alignment="median"))
    evaluate(net, system.evaluation_data(config), evaluator, sample=system.evaluate_sample)
    return float(evaluator.compute()["abs_rel"])


def run(preset: str, overrides: Sequence[str], folder: str) -> dict[str, Any]:
    """Trains a preset and returns its figures."""
    config = load_config(preset, [*RUNS.get(preset, ()), *overrides, f"--output={folder}"])
    start = time.perf_counter()
    result = train(config)
    seconds = time.perf_counter() - start
    figures = {
        "preset": preset,
        "system": config.system,
        "steps": result.step,
        "minutes": round(seconds / 60, 1),
        "abs_rel": measure(load_trained(result.folder).net, config),
        "constant": measure(ConstantDepth().eval(), config),
    }
    print(" ".join(f"{key} {value}" for key, value in figures.items()), flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="*", default=list(RUNS))
    parser.add_argument("--backends", action="store_true", help="compare fused with reference losses instead")
    arguments = parser.parse_args()
    facts = report.device_facts(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        if arguments.backends:
            curves = []
            for seed in SEEDS:
                for backend in (None, "reference"):
                    with use_backend(backend):
                        short = [*MONO, f"--seed={seed}", "--trainer.max_epochs=2", "--data.length=400"]
                        figures = run("synthetic", short, folder)
                    curves.append({"seed": seed, "backend": backend or "fused", **figures})
            report.write_record(RESULTS, "fused_against_reference", "96x160", facts, training=curves)
            return
        runs = [run(preset, [], folder) for preset in arguments.presets]
    report.write_record(RESULTS, "synthetic_training", "96x160", facts, training=runs)
    report.write_tables(RESULTS, README)


if __name__ == "__main__":
    main()
