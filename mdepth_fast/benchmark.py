"""The former place of `mdepth_fast.bench`; its names stay importable from here."""

from mdepth_fast.bench.cases import CASES, GPU_CASES, Case, lidar_frame, network, scene
from mdepth_fast.bench.measure import (
    PLAIN,
    VARIANTS,
    Measurement,
    Problem,
    Speed,
    Step,
    device_speed,
    kept_bytes,
    measure,
    peak_bytes,
    precision,
    prepare,
    problem,
    seconds,
    seconds_and_host,
    unavailable,
)
from mdepth_fast.bench.report import chart, table

__all__ = [
    "CASES",
    "GPU_CASES",
    "PLAIN",
    "VARIANTS",
    "Case",
    "Measurement",
    "Problem",
    "Speed",
    "Step",
    "chart",
    "device_speed",
    "kept_bytes",
    "lidar_frame",
    "measure",
    "network",
    "peak_bytes",
    "precision",
    "prepare",
    "problem",
    "scene",
    "seconds",
    "seconds_and_host",
    "table",
    "unavailable",
]
