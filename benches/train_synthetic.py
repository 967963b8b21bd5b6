"""Trains the self-supervised systems on ray-cast rooms and measures them on held-out ones: results/<device>/.

python benches/train_synthetic.py [preset ...]      each against the predictor of one constant depth, median-aligned
python benches/train_synthetic.py --variants        Monodepth2, two seeds each: fused losses, reference losses, and
                                                    fused losses with the networks in bfloat16

Each preset takes minutes on a CPU. The figures are AbsRel on 50 rooms that no system has seen.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from mdepth_fast import use_backend
from mdepth_fast.bench import report
from mdepth_fast.evaluation import get_protocol
from mdepth_fast.inference import evaluate, load_trained
from mdepth_fast.models import DepthPrediction
from mdepth_fast.systems import load_config, system_of
from mdepth_fast.training.precision import choose_precision
from mdepth_fast.training.run import train

RESULTS, README = Path(__file__).parent / "results", Path(__file__).parents[1] / "README.md"
PRESETS = ("synthetic_mono", "vid2depth_synthetic", "sfmlearner_synthetic")
SEEDS = (0, 1)
VARIANTS = ((None, "32-true"), ("reference", "32-true"), (None, "bf16-mixed"))
SHORT = ("--trainer.max_steps=240", "--trainer.val_every_n_steps=30")


class ConstantDepth(nn.Module):
    """Predicts a depth of 1 everywhere: after median alignment, the median of the ground truth."""

    takes_views, takes_intrinsics = True, False

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


class Curve(Callback):
    """AbsRel of every validation, by step."""

    def __init__(self) -> None:
        self.points: dict[int, float] = {}

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:  # type: ignore[override]
        self.points[trainer.global_step] = round(float(trainer.callback_metrics["val/abs_rel"]), 4)


def run(preset: str, folder: str, *overrides: str, seed: int = 0, backend: str | None = None) -> dict[str, Any]:
    """Trains a preset and returns its figures."""
    config = load_config(preset, [*overrides, f"--seed={seed}", f"--output={folder}"])
    curve, constant = Curve(), measure(ConstantDepth().eval(), config)
    start = time.perf_counter()
    with use_backend(backend):
        result = train(config, callbacks=[curve])
    seconds = time.perf_counter() - start
    figures = {
        "preset": preset,
        "system": config.system,
        "backend": backend or "fused",
        "precision": choose_precision(config.trainer.precision, "cpu")[0],
        "seed": seed,
        "steps": result.step,
        "minutes": round(seconds / 60, 1),
        "curve": curve.points,
        "abs_rel": measure(load_trained(result.folder).net, config),
        "constant": constant,
    }
    print(" ".join(f"{key} {value}" for key, value in figures.items() if key != "curve"), flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="*", default=list(PRESETS))
    parser.add_argument("--variants", action="store_true", help="compare losses and precisions in short runs instead")
    arguments = parser.parse_args()
    facts = report.device_facts(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        if arguments.variants:
            runs = [
                run("synthetic_mono", folder, *SHORT, f"--trainer.precision={precision}", seed=seed, backend=backend)
                for seed in SEEDS
                for backend, precision in VARIANTS
            ]
            report.write_record(RESULTS, "training_variants", "64x96", facts, training=runs)
        else:
            for preset in arguments.presets:  # written one by one: each takes minutes
                report.write_record(RESULTS, preset, "64x96", facts, training=[run(preset, folder)])
    report.write_tables(RESULTS, README)


if __name__ == "__main__":
    main()
