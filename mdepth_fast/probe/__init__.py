"""What a depth network sees: the experiments of van Dijk and de Croon (ICCV 2019, arXiv 1905.07005) on any model."""

from mdepth_fast.probe.experiments import EXPERIMENTS, Setting, probe
from mdepth_fast.probe.report import draw_examples, draw_report, summary, write_report
from mdepth_fast.probe.stimuli import Obstacle, car_from_behind, read_obstacle

__all__ = [
    "EXPERIMENTS",
    "Obstacle",
    "Setting",
    "car_from_behind",
    "draw_examples",
    "draw_report",
    "probe",
    "read_obstacle",
    "summary",
    "write_report",
]
