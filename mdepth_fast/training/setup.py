"""From a configuration to data sets, networks and the module that trains them."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from mdepth_fast.data import (
    Cached,
    DepthAugment,
    DepthList,
    EvaluationView,
    FastDepthH5,
    FrameFolder,
    KittiDepth,
    KittiRaw,
    MotorcycleStereo,
    NyuLabelled,
    RgbdFolder,
    SyntheticScenes,
    collate_depth,
)
from mdepth_fast.data.kitti import list_frames
from mdepth_fast.losses import (
    BerHuLoss,
    DepthL1Loss,
    DepthL2Loss,
    LogDepthL1Loss,
    OrdinalLoss,
    ScaleShiftInvariantLoss,
    SILogLoss,
)
from mdepth_fast.models import create_model
from mdepth_fast.training.config import (
    AnyConfig,
    DataConfig,
    DepthDataConfig,
    DepthLossConfig,
    SelfSupervisedConfig,
    SupervisedConfig,
)
from mdepth_fast.training.loader import BatchSampler, TrainLoader
from mdepth_fast.weights import load_checkpoint

__all__ = [
    "build_depth_net",
    "build_loader",
    "build_loss",
    "build_pose_net",
    "cache_size",
    "evaluation_data",
    "training_data",
]


T = TypeVar("T")

_LOSSES: dict[str, Callable[..., nn.Module]] = {
    "silog": SILogLoss,
    "berhu": BerHuLoss,
    "ordinal": OrdinalLoss,
    "l1": DepthL1Loss,
    "l2": DepthL2Loss,
    "log_l1": LogDepthL1Loss,
    "ssi": ScaleShiftInvariantLoss,
}


def training_data(config: AnyConfig) -> Any:
    """The data set that is trained on.

    Of a self-supervised run, its `sources` say the mode: offsets M, "stereo" S, both MS.
    """
    if isinstance(config, SupervisedConfig):
        dataset = _depth_data(config.data, training=True)
        return Cached(dataset, config.data.cache, cache_size(config.data)) if config.data.cache else dataset
    data = config.data
    size = _size(data)
    given: dict[str, Any] = {"sources": tuple(data.sources)} if data.sources else {}
    if data.name == "motorcycle":
        if data.sources not in ([], ["stereo"]):
            raise ValueError(f'data.sources: the motorcycle pair has ["stereo"] only, got {data.sources}')
        return MotorcycleStereo(**size)
    if data.name == "synthetic":
        return SyntheticScenes(data.length, **size, **given, seed=2 * config.seed)
    root = _root(data)
    if data.name == "kitti":
        sources = given.get("sources", (-1, 1))
        offsets = tuple(source for source in sources if isinstance(source, int))
        split = data.split or list_frames(root, offsets=offsets, stereo="stereo" in sources)
        return KittiRaw(root, split, **size, sources=sources, skip_missing=data.skip_bad)
    return FrameFolder(root, data.intrinsics or root / "K.txt", **size, **given)


def evaluation_data(config: AnyConfig) -> Any:
    """The samples with ground truth that belong to a training set: held out where there are any, or None."""
    if isinstance(config, SupervisedConfig):
        held_out = _depth_data(config.data, training=False)
        if held_out is None:
            return None
        return EvaluationView(held_out, config.data.view, DepthAugment(**vars(config.augment)))
    data = config.data
    size = _size(data)
    if data.name == "motorcycle":
        return MotorcycleStereo(**size, evaluation=True)
    if data.name == "synthetic":
        return SyntheticScenes(min(data.length, 50), **size, sources=(), seed=2 * config.seed + 1, evaluation=True)
    if data.name == "kitti" and data.val_split:
        return KittiRaw(
            _root(data),
            data.val_split,
            **size,
            sources=(),
            evaluation=True,
            ground_truth=data.ground_truth,
            annotated_root=data.annotated_root,
            skip_missing=data.skip_bad,
        )
    if data.name == "folder" and data.depth:
        root = _root(data)
        return FrameFolder(
            root, data.intrinsics or root / "K.txt", **size, sources=(), depth=data.depth, evaluation=True
        )
    return None


def _depth_data(data: DepthDataConfig, *, training: bool) -> Any:
    """One part of measured data; None where there is none to validate on."""
    root, depth_root = _root(data), Path(data.depth_root or data.root or "")
    split = data.split if training else data.val_split
    crop: Any = None
    if training and data.crop is not None:
        crop = data.crop if isinstance(data.crop, str) else tuple(data.crop)
    if data.name == "nyu_labelled":
        path = root / "nyu_depth_v2_labeled.mat"
        filled = data.filled and not training
        return NyuLabelled(path, "train" if training else "test", splits=split, filled=filled, crop=crop)
    if data.name == "fastdepth_h5":
        return FastDepthH5(root, "train" if training else "val", crop=crop)
    if data.name == "kitti_depth" and training:
        split = split or "train"
    if not training and not split:
        return None
    if data.name == "kitti_depth":
        return KittiDepth(root, depth_root, str(split), crop=crop, skip_missing=data.skip_bad)
    if data.name == "rgbd_folder":
        root = Path(split) if split and not training else root
        return RgbdFolder(root / data.images, root / data.depth, units_per_metre=data.units_per_metre, crop=crop)
    if not split:
        raise ValueError("data.split: expected the list of frames of depth_list, got none; give --data.split=FILE")
    return DepthList(split, root, depth_root, units_per_metre=data.units_per_metre, crop=crop)


def cache_size(data: DepthDataConfig) -> tuple[int, int] | None:
    if data.cache_size is None:
        return None
    if len(data.cache_size) != 2:
        raise ValueError(f"data.cache_size: expected [height, width], got {data.cache_size}")
    return data.cache_size[0], data.cache_size[1]


def build_loss(loss: DepthLossConfig, net: Any) -> nn.Module:
    """The loss of a supervised run for a network; the bins of an ordinal one are the network's."""
    options = _tuples(loss.options)
    if loss.name == "ordinal":
        if not hasattr(net, "thresholds"):
            raise ValueError(f"loss.name: ordinal needs a network of ordinal logits, got {type(net).__name__}")
        options.setdefault("thresholds", net.thresholds)
    return _called("loss.options", _LOSSES[loss.name], options)


def _tuples(options: dict[str, Any]) -> dict[str, Any]:
    """YAML has no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def _called(setting: str, function: Callable[..., T], options: dict[str, Any]) -> T:
    try:
        return function(**options)
    except TypeError as error:
        if "keyword argument" in str(error):
            raise ValueError(f"{setting}: {error}") from error
        raise


def build_loader(
    config: AnyConfig, dataset: Any, *, rank: int = 0, world_size: int = 1, pin_memory: bool = False
) -> TrainLoader:
    """The loader of one process of a run."""
    data = config.data
    sampler = BatchSampler(
        len(dataset), data.batch_size, seed=config.seed, repeat=data.repeat, rank=rank, world_size=world_size
    )
    return TrainLoader(
        dataset,
        sampler,
        num_workers=data.workers,
        persistent_workers=data.workers > 0,
        pin_memory=pin_memory,
        collate_fn=collate_depth,
    )


def _size(data: DataConfig) -> dict[str, Any]:
    for name, value in (("height", data.height), ("width", data.width)):
        if value < 32 or value % 32:
            raise ValueError(f"data.{name}: expected a multiple of 32, got {value}")
    return {"height": data.height, "width": data.width}


def _root(data: DataConfig | DepthDataConfig) -> Path:
    if not data.root:
        raise ValueError(f"data.root: expected the folder of the {data.name} data, got none; give --data.root=FOLDER")
    if not Path(data.root).is_dir():
        raise FileNotFoundError(f"data.root: no such folder: {data.root}")
    return Path(data.root)


def build_depth_net(config: AnyConfig, sources: Sequence[int | str] = ()) -> Any:
    """The depth network of a configuration.

    That of a self-supervised run has the metre as its unit as soon as one of its `sources` has a known pose.
    """
    model = config.model
    options: dict[str, Any] = {"encoder_weights": model.encoder_weights} if model.encoder_weights else {}
    if isinstance(config, SelfSupervisedConfig):
        options |= {
            "min_depth": config.model.min_depth,
            "max_depth": config.model.max_depth,
            "unit": "m" if any(isinstance(source, str) for source in sources) else None,
            "input_size": (config.data.height, config.data.width),
        }
    else:
        options |= _tuples(config.model.options)
    net: Any = _called("model.options", partial(create_model, model.name), options)
    if model.weights:
        load_checkpoint(net, model.weights)
    return net


def build_pose_net(config: SelfSupervisedConfig, sources: Sequence[int | str]) -> nn.Module | None:
    """The pose network, or None where every source has a known pose."""
    if not any(isinstance(source, int) for source in sources):
        return None
    options = {"encoder_weights": config.pose.encoder_weights} if config.pose.encoder_weights else {}
    net = create_model(config.pose.name, **options)
    if config.pose.weights:
        load_checkpoint(net, config.pose.weights)
    return net
