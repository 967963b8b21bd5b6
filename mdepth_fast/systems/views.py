"""Samples with several views of a scene: their configuration, their data sets, and the batch of a training step."""

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mdepth_fast.data import (
    FrameFolder,
    KittiOdometry,
    KittiRaw,
    MotorcycleStereo,
    ShardedViews,
    SyntheticScenes,
    Triplets,
)
from mdepth_fast.data.kitti import list_frames
from mdepth_fast.data.kitti_odometry import list_odometry_frames
from mdepth_fast.data.samples import list_images, natural_key

__all__ = ["AugmentConfig", "DataConfig", "Views", "evaluation_views", "training_views"]


@dataclass(frozen=True)
class Views:
    """A batch of B targets, each with S sources, as `mdepth_fast.data.Augment` returns it.

    Objectives compare `target` and `sources`. Networks see `target_aug` and `sources_aug`, the same images with other
    colours. Images are float in [0, 1].
    """

    target: Tensor
    """(B,3,H,W)"""
    sources: Tensor
    """(B,S,3,H,W)"""
    target_aug: Tensor
    """(B,3,H,W)"""
    sources_aug: Tensor
    """(B,S,3,H,W)"""
    K: Tensor
    """(B,3,3) in pixels of the target"""
    source_K: Tensor
    """(B,S,3,3)"""
    T: Tensor
    """(B,S,4,4), target camera to source camera; the identity where the pose is not known"""
    pyramid: list[Tensor]
    """the target at scales s = 0, 1, ..., each half the size of the one before: (B,3,H/2^s,W/2^s)"""
    offsets: tuple[int | str, ...]
    """one per source: an integer is a frame offset with unknown pose; a name ("stereo", "known") has a known pose"""
    names: list[str]
    """names of the samples"""

    @classmethod
    def of_batch(cls, batch: Mapping[str, Any], offsets: Sequence[int | str]) -> "Views":
        """Builds views from the dictionary of `Augment` and the `sources` of its data set."""
        tensors = ("target", "sources", "target_aug", "sources_aug", "K", "source_K", "T", "pyramid")
        return cls(**{key: batch[key] for key in tensors}, offsets=tuple(offsets), names=list(batch["name"]))


@dataclass
class DataConfig:
    """The training and validation data.

    Args:
        name: motorcycle (embedded stereo pair), synthetic (ray-cast scenes), kitti (raw data), kitti_odometry
            (sequences/ of the odometry benchmark), folder (your frames), triplets (sequences prepared by SfMLearner or
            vid2depth), webdataset (shards of `mdepth-fast data pack`).
        root: folder of the data, required for kitti, kitti_odometry, folder, triplets and webdataset. folder: also
            several clips, which sources never cross: a folder of such folders, a pattern such as "clips/*", or a list
            of either.
        height: height of the network input, a multiple of 32.
        width: width of the network input, a multiple of 32.
        sources: frame offsets relative to the target, and "stereo"; empty for the data set's default.
        length: synthetic: number of scenes.
        motion: synthetic: free, or steady, nearly the same motion in all scenes.
        keep: synthetic: keep the rendered scenes in memory, so that later epochs render nothing; each worker keeps its
            own, so use it with workers 0.
        split: kitti: file of training lines "folder index side", or null for all frames under the root
            (kitti_odometry: of sequences 00 to 08); triplets: file of training lines "folder frame", or null for
            train.txt in the root; folder: file of the names of the target frames, or null for all.
        val_split: kitti: file of validation lines, or null for no validation. folder: file of the names of the frames
            to validate on. webdataset: folder of shards packed with --part val, or null.
        ground_truth: kitti: lidar (camera z), lidar_x (the historic Eigen ground truth) or annotated.
        annotated_root: kitti: folder of the annotated depth maps, for ground_truth annotated.
        intrinsics: folder: file of the 3x3 camera matrix in pixels of the frames, or null for K.txt in the root.
        depth: folder: folder of 16-bit PNGs in millimetres named like the frames, for validation, or null.
        poses: folder: file of camera-to-world poses in the unit of the depth, a row per frame (KITTI, TUM or 4x4), in
            place of a pose network; null to predict the motion.
        batch_size: samples per step over all processes.
        repeat: number of times to show every sample per epoch.
        workers: number of processes that decode images; 0 decodes in the training process.
        skip_bad: leave out and count unreadable samples; by default they stop the run with an error.
        nominal_K: kitti, kitti_odometry: the published intrinsics 0.58, 1.92, 0.5, 0.5 (of width and height) for all
            drives in place of the calibrated ones.
        aspect_tolerance: kitti: share by which width / height of resized images may differ from the calibrated one.
        intrinsics_size: folder: [height, width] of the images that the camera matrix is for, or null for those of the
            frames; it is scaled to resized ones.
        intrinsics_normalized: folder: the camera matrix is in fractions of width and height.
        encoding: folder: of whole numbers in depth images: metres (times 1000), sunrgbd, or uint8 for those of 8 bits.
        invalid_value: folder: what depth images hold where there is none, besides 0, such as 65535.
        white_level: folder: value that is white in images of more than 8 bits, such as 4095; null for their type's.
    """

    name: Literal["motorcycle", "synthetic", "kitti", "kitti_odometry", "folder", "triplets", "webdataset"] = (
        "motorcycle"
    )
    root: str | list[str] | None = None
    height: int = 192
    width: int = 640
    sources: list[int | Literal["stereo"]] = field(default_factory=list)
    length: int = 1000
    motion: Literal["free", "steady"] = "free"
    keep: bool = False
    split: str | None = None
    val_split: str | None = None
    ground_truth: Literal["lidar", "lidar_x", "annotated"] = "lidar"
    annotated_root: str | None = None
    intrinsics: str | None = None
    depth: str | None = None
    batch_size: int = 12
    repeat: int = 1
    workers: int = 0
    skip_bad: bool = False
    nominal_K: bool = False
    poses: str | None = None
    aspect_tolerance: float = 0.02
    intrinsics_size: list[int] | None = None
    intrinsics_normalized: bool = False
    encoding: Literal["metres", "sunrgbd", "uint8"] = "metres"
    invalid_value: float | None = None
    white_level: float | None = None


@dataclass
class AugmentConfig:
    """Published augmentation (Monodepth2): one draw per sample, shared by all its frames.

    Args:
        flip: probability of a horizontal flip.
        jitter: probability of colour jitter, applied only to the networks' inputs.
        brightness: range of the factor, 1 +- brightness.
        contrast: range of the factor, 1 +- contrast.
        saturation: range of the factor, 1 +- saturation.
        hue: range of the shift, in turns of the colour circle.
    """

    flip: float = 0.5
    jitter: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.1


def training_views(data: DataConfig, seed: int) -> Any:
    """The training data set; its `sources` define the mode: offsets M, "stereo" S, both MS."""
    size = _size(data)
    given: dict[str, Any] = {"sources": tuple(data.sources)} if data.sources else {}
    if data.poses and data.name != "folder":
        raise ValueError(f"data.poses: expected null for the {data.name} data, which read no file of poses")
    if data.name == "motorcycle":
        if data.sources not in ([], ["stereo"]):
            raise ValueError(f'data.sources: the motorcycle pair has ["stereo"] only, got {data.sources}')
        return MotorcycleStereo(**size)
    if data.name == "synthetic":
        return SyntheticScenes(data.length, **size, **given, seed=2 * seed, motion=data.motion, keep=data.keep)
    if data.name == "folder":
        clips = _clips(data)
        options = _folder_reading(data)
        return FrameFolder(
            clips,
            _intrinsics(data, clips),
            **size,
            **given,
            poses=data.poses,
            split=data.split,
            check_sizes=not data.skip_bad,
            **options,
        )
    root = root_folder(data)
    if data.name in ("kitti", "kitti_odometry"):
        sources = given.get("sources", (-1, 1))
        offsets = tuple(source for source in sources if isinstance(source, int))
        list_all, kind = (list_frames, KittiRaw) if data.name == "kitti" else (list_odometry_frames, KittiOdometry)
        split = data.split or list_all(root, offsets=offsets, stereo="stereo" in sources)  # type: ignore[operator]
        options = {"nominal_K": data.nominal_K, "skip_missing": data.skip_bad}
        if data.name == "kitti":
            options["aspect_tolerance"] = data.aspect_tolerance
        return kind(root, split, **size, sources=sources, **options)
    if data.name == "webdataset":
        return ShardedViews(root, **size, **given)
    if data.name == "triplets":
        return Triplets(root, data.split or root / "train.txt", **size, **given)
    raise ValueError(f"data.name: expected a data set of views, got {data.name!r}")


def evaluation_views(data: DataConfig, seed: int) -> Any:
    """The samples with ground truth for the training set, held out if possible, or None."""
    size = _size(data)
    if data.name == "motorcycle":
        return MotorcycleStereo(**size, evaluation=True)
    if data.name == "synthetic":
        return SyntheticScenes(min(data.length, 50), **size, sources=(), seed=2 * seed + 1, evaluation=True)
    if data.name == "kitti" and data.val_split:
        return KittiRaw(
            root_folder(data),
            data.val_split,
            **size,
            sources=(),
            evaluation=True,
            ground_truth=data.ground_truth,
            annotated_root=data.annotated_root,
            skip_missing=data.skip_bad,
            aspect_tolerance=data.aspect_tolerance,
        )
    if data.name == "webdataset" and data.val_split:
        return ShardedViews(data.val_split, **size, evaluation=True)
    if data.name == "folder" and data.depth:
        clips = _clips(data)
        # Of several clips each has its folder there.
        depth = [Path(data.depth) / clip.name for clip in clips] if len(clips) > 1 else data.depth
        if len(clips) > 1 and len(set(depth)) < len(clips):
            raise ValueError(
                f"data.root: expected clips of different names, as each has a folder in {data.depth}, got "
                f"{', '.join(map(str, clips))}"
            )
        return FrameFolder(
            clips,
            _intrinsics(data, clips),
            **size,
            sources=(),
            depth=depth,
            evaluation=True,
            split=data.val_split,
            encoding=data.encoding,
            invalid_value=data.invalid_value,
            **_folder_reading(data),
        )
    return None


def _folder_reading(data: DataConfig) -> dict[str, Any]:
    size = data.intrinsics_size
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"data.intrinsics_size: expected [height, width], got {size}")
    known = None if size is None else (size[0], size[1])
    return {"normalized": data.intrinsics_normalized, "K_size": known, "white_level": data.white_level}


def _size(data: DataConfig) -> dict[str, Any]:
    for name, value in (("height", data.height), ("width", data.width)):
        if value < 32 or value % 32:
            raise ValueError(f"data.{name}: expected a multiple of 32, got {value}")
    return {"height": data.height, "width": data.width}


def _clips(data: DataConfig) -> list[Path]:
    """The folders of frames that `data.root` names: itself, its sub-folders, those of a pattern, of each in a list."""
    if isinstance(data.root, list) and not data.root:
        raise ValueError("data.root: expected at least one folder of frames, got an empty list")
    clips: list[Path] = []
    for name in data.root if isinstance(data.root, list) else [data.root]:
        if name and glob.has_magic(name) and not Path(name).exists():
            anchor = Path(Path(name).anchor)
            found = anchor.glob(str(Path(name).relative_to(anchor)))
            roots = sorted((path for path in found if path.is_dir()), key=lambda path: natural_key(str(path)))
            if not roots:
                raise FileNotFoundError(f"data.root: no folder is matched by {name}")
        else:
            roots = [root_folder(replace(data, root=name))]
        for root in roots:
            if list_images(root):
                clips.append(root)
                continue
            inside = sorted(filter(Path.is_dir, root.iterdir()), key=lambda one: natural_key(one.name))
            clips += [folder for folder in inside if list_images(folder)] or [root]
    if data.poses and len(clips) > 1:
        raise ValueError(f"data.poses: expected one clip, whose poses the file has, got {len(clips)}")
    return clips


def _intrinsics(data: DataConfig, clips: list[Path]) -> str | Path:
    """The file of the camera matrix: as given, or K.txt beside the frames or in the folder above the clips."""
    if data.intrinsics:
        return data.intrinsics
    above = clips[0].parent / "K.txt"
    if len(clips) > 1 and above.is_file():
        return above
    files = [clip / "K.txt" for clip in clips if (clip / "K.txt").is_file()]
    if len({file.read_bytes() for file in files}) > 1:
        raise ValueError("data.intrinsics: expected one camera for all clips, got K.txt that differ from clip to clip")
    return files[0] if files else clips[0] / "K.txt"


def root_folder(data: Any) -> Path:
    """The folder that `data.root` names; ValueError or FileNotFoundError if there is none."""
    if isinstance(data.root, list):
        raise ValueError(f"data.root: expected one folder of the {data.name} data, got a list")
    if not data.root:
        raise ValueError(f"data.root: expected the folder of the {data.name} data, got none; give --data.root=FOLDER")
    if not Path(data.root).is_dir():
        raise FileNotFoundError(f"data.root: no such folder: {data.root}")
    return Path(data.root)
