"""The presets of vid2depth and SfMLearner in small: narrow networks and small images, a few steps."""

from pathlib import Path

SMALL = ["--data.height=64", "--data.width=96", "--data.workers=0", "--data.batch_size=2"]
SMALL += ["--model.options.width_multiplier=0.0625", "--pose.options.width_multiplier=0.125"]
SMALL += ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.log_every_n_steps=1"]

DRIVE = "2011_09_26/2011_09_26_drive_0052_sync"


def kitti(real_data: Path, folder: Path) -> list[str]:
    """Settings for real frames of KITTI: five to train on, two with LiDAR to evaluate."""
    for name, frames in (("train", (1, 3, 5, 7, 9)), ("val", (2, 4))):
        (folder / f"{name}.txt").write_text("".join(f"{DRIVE} {frame} l\n" for frame in frames))
    splits = [f"--data.split={folder / 'train.txt'}", f"--data.val_split={folder / 'val.txt'}"]
    return [f"--data.root={real_data / 'kitti_raw'}", *splits]
