"""Data sets, samples and the batched transforms between them and a training step."""

from mdepth_fast.data.frames import FrameFolder
from mdepth_fast.data.kitti import KittiRaw, list_frames
from mdepth_fast.data.motorcycle import MotorcycleStereo
from mdepth_fast.data.samples import DataError, DepthSample, Sample, SkipBroken
from mdepth_fast.data.synthetic import SyntheticScenes
from mdepth_fast.data.transforms import Augment

__all__ = [
    "Augment",
    "DataError",
    "DepthSample",
    "FrameFolder",
    "KittiRaw",
    "MotorcycleStereo",
    "Sample",
    "SkipBroken",
    "SyntheticScenes",
    "list_frames",
]
