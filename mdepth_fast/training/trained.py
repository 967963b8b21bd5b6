"""The former place of `mdepth_fast.inference`."""

from mdepth_fast.inference import Trained, evaluate, evaluate_sample, load_trained, predict_sample

__all__ = ["Trained", "evaluate", "evaluate_sample", "load_trained", "predict_sample"]
