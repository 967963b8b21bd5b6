"""Data sets, samples and the batched transforms between them and a training step."""

from mdepth_fast.data.cache import Cached
from mdepth_fast.data.depth_lists import DepthList, KittiDepth, RgbdFolder
from mdepth_fast.data.depth_transforms import AUGMENTATIONS, DepthAugment, collate_depth
from mdepth_fast.data.flow import (
    FlowFile,
    FlowPairs,
    FlowSample,
    FlyingChairs,
    FramePairs,
    KittiFlow,
    read_flow,
    write_flo,
    write_flow_png,
)
from mdepth_fast.data.flow_synthetic import SyntheticFlow
from mdepth_fast.data.flow_transforms import FlowAugment, collate_flow
from mdepth_fast.data.frames import FrameFolder
from mdepth_fast.data.kitti import KittiRaw, list_frames
from mdepth_fast.data.kitti_odometry import KittiOdometry, list_odometry_frames
from mdepth_fast.data.motorcycle import MotorcycleStereo
from mdepth_fast.data.nyu import FastDepthH5, NyuLabelled
from mdepth_fast.data.samples import DataError, DepthDataset, DepthSample, Sample, SkipBroken, kb_crop
from mdepth_fast.data.shards import ShardedDepth, ShardedViews, Shards
from mdepth_fast.data.synthetic import SyntheticScenes
from mdepth_fast.data.trajectory import Trajectory
from mdepth_fast.data.transforms import Augment, SequenceAugment, StereoAugment
from mdepth_fast.data.triplets import Triplets
from mdepth_fast.data.views import VIEWS, EvaluationView

__all__ = [
    "AUGMENTATIONS",
    "VIEWS",
    "Augment",
    "Cached",
    "DataError",
    "DepthAugment",
    "DepthDataset",
    "DepthList",
    "DepthSample",
    "EvaluationView",
    "FastDepthH5",
    "FlowAugment",
    "FlowFile",
    "FlowPairs",
    "FlowSample",
    "FlyingChairs",
    "FrameFolder",
    "FramePairs",
    "KittiDepth",
    "KittiFlow",
    "KittiOdometry",
    "KittiRaw",
    "MotorcycleStereo",
    "NyuLabelled",
    "RgbdFolder",
    "Sample",
    "SequenceAugment",
    "ShardedDepth",
    "ShardedViews",
    "Shards",
    "SkipBroken",
    "StereoAugment",
    "SyntheticFlow",
    "SyntheticScenes",
    "Trajectory",
    "Triplets",
    "collate_depth",
    "collate_flow",
    "kb_crop",
    "list_frames",
    "list_odometry_frames",
    "read_flow",
    "write_flo",
    "write_flow_png",
]
