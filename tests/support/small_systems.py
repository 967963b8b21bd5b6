"""The supervised systems in small: the networks of the presets, narrow enough for a test, and real frames as their data
sets are published."""

from functools import partial
from pathlib import Path

import h5py
import numpy as np
from scipy.io import savemat

from mdepth_fast.data.samples import read_depth, read_image
from mdepth_fast.models import DepthAnythingV2, DPTGeometry, register_model
from mdepth_fast.models.dpt import DPT

_GEOMETRY = DPTGeometry(48, 4, 2, (1, 3), (128, 256, 64, 64), features=32, trunk=(1, 1, 1), trunk_width=32)
register_model("tiny_dpt_nyu", partial(DPT, _GEOMETRY, scale=3.05e-4, shift=0.1378, target_size=(480, 640)))
register_model("tiny_dpt_kitti", partial(DPT, _GEOMETRY, scale=6.016e-5, shift=0.00579, target_size=(352, 1216)))

_TOKENS = DPTGeometry(24, 4, 2, (0, 1, 2, 3), (8, 8, 8, 8), features=8)
register_model("tiny_depth_anything", partial(DepthAnythingV2, _TOKENS))
register_model("tiny_depth_anything_indoor", partial(DepthAnythingV2, _TOKENS, max_depth=20.0))
register_model("tiny_depth_anything_outdoor", partial(DepthAnythingV2, _TOKENS, max_depth=80.0))

# Without ImageNet weights nothing may be frozen.
_DORN = ["--model.options={layers: 50, width: 8, freeze_stem: false, freeze_norm: false}"]

SMALL: dict[str, list[str]] = {
    "eigen2014_nyu": ["--model.options.hidden=64"],
    "eigen2014_kitti": ["--model.options.hidden=64"],
    "fcrn_nyu": ["--model.options.layers=18"],
    "dorn_nyu": _DORN,
    "dorn_kitti": _DORN,
    "fastdepth_nyu": [
        "--model.options.encoder_channels=[8,16,16,32,32,64,64,64,64,64,64,64,64,64]",
        "--model.options.decoder_channels=[64,64,32,16,8]",
    ],
    "dpt_nyu": ["--model.name=tiny_dpt_nyu"],
    "dpt_kitti": ["--model.name=tiny_dpt_kitti"],
    "depth_anything_folder": ["--model.name=tiny_depth_anything"],
    "depth_anything_kitti": ["--model.name=tiny_depth_anything_outdoor"],
    "depth_anything_nyu": ["--model.name=tiny_depth_anything_indoor"],
}


def write_nyu(real: Path, root: Path) -> Path:
    """`root`, with four real frames of NYU as nyu_depth_v2_labeled.mat (three to train on) and as FastDepth's .h5."""
    basement = real / "nyu" / "basement_0001a"
    names = [(basement / f"rgb_{n:05d}.jpg", basement / f"sync_depth_{n:05d}.png") for n in (0, 50, 100)]
    demo = real / "nyu" / "unidepth_demo"
    names.append((demo / "rgb.png", demo / "depth.png"))
    images = np.stack([read_image(image) for image, _ in names])
    depth = np.stack([read_depth(path, 1000.0) for _, path in names])
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
        # MATLAB's order: frame, channel, column, row.
        file["images"] = images.transpose(0, 3, 2, 1)
        file["rawDepths"] = depth.transpose(0, 2, 1)
        file["depths"] = np.where(depth > 0, depth, np.median(depth)).transpose(0, 2, 1)
    savemat(root / "splits.mat", {"trainNdxs": np.array([[1], [2], [3]]), "testNdxs": np.array([[4]])})
    for index in range(4):
        folder = root / ("val" if index == 3 else "train") / "scene"
        folder.mkdir(parents=True, exist_ok=True)
        with h5py.File(folder / f"{index + 2:05d}.h5", "w") as file:
            file["rgb"], file["depth"] = images[index].transpose(2, 0, 1), depth[index]
    return root


def write_folder(real: Path, root: Path) -> Path:
    """`root`, with images/ and depth/ of two real frames, and val/ with those of a third."""
    for folder, number in ((root, 3), (root, 4), (root / "val", 5)):
        for part in ("images", "depth"):
            link = folder / part / f"{number:05d}.png"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(real / "indoor_rgbd" / part / link.name)
    return root


def write_kitti(real: Path, root: Path) -> Path:
    """`root`, with the raw tree and the annotated tree of three real frames, one of them in val/."""
    drive = "2011_09_30_drive_0001_sync"
    for part, index in (("train", 5), ("train", 50), ("val", 100)):
        name = f"{index:010d}.png"
        image = root / "2011_09_30" / drive / "image_02" / "data" / name
        depth = root / part / drive / "proj_depth" / "groundtruth" / "image_02" / name
        for link, target in ((image, "rgb"), (depth, "depth")):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(real / "kitti_depth" / target / name)
    return root
