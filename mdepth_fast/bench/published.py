"""Speeds that papers state for their networks, on the hardware that they had."""

from dataclasses import dataclass

__all__ = ["PUBLISHED", "Published"]


@dataclass(frozen=True)
class Published:
    """One stated speed, at batch size 1 unless `note` says otherwise."""

    seconds: float
    """per image"""
    device: str
    size: tuple[int, int]
    """H, W"""
    source: str
    note: str = ""

    def __str__(self) -> str:
        height, width = self.size
        note = f", {self.note}" if self.note else ""
        return (
            f"{1 / self.seconds:.4g} images/s ({1e3 * self.seconds:.3g} ms) on {self.device} at {height}x{width}{note} "
            f"({self.source})"
        )


_DPT = "arXiv 2103.13413, table 9"
_RTX = "an RTX 2080 with a Xeon Platinum 8280"
_MIDAS = "MiDaS v3.1, README"
_FASTDEPTH = "arXiv 1903.03273"
_GPU, _CPU = "the GPU of a Jetson TX2 (max-N)", "the CPU of a Jetson TX2 (max-N)"

# By registered name, at the size of the paper's measurement.
PUBLISHED: dict[str, tuple[Published, ...]] = {
    "dpt_large": (
        Published(1 / 28.6, _RTX, (384, 384), _DPT),
        Published(1 / 61, "an RTX 3090", (384, 384), _MIDAS),
    ),
    "dpt_base": (Published(1 / 58.8, _RTX, (384, 384), _DPT),),
    "dpt_hybrid": (
        Published(1 / 26.3, _RTX, (384, 384), _DPT),
        Published(1 / 50, "an RTX 3090", (384, 384), _MIDAS),
    ),
    "fastdepth": (
        Published(8.2e-3, _GPU, (224, 224), _FASTDEPTH, "before pruning"),
        Published(66e-3, _CPU, (224, 224), _FASTDEPTH, "before pruning"),
    ),
    "fastdepth_pruned": (
        Published(1 / 178, _GPU, (224, 224), _FASTDEPTH),
        Published(37e-3, _CPU, (224, 224), _FASTDEPTH),
    ),
    "fcrn_resnet50_upproj": (
        Published(319e-3, _GPU, (228, 304), _FASTDEPTH),
        Published(3.9, _CPU, (228, 304), _FASTDEPTH),
    ),
    "fcrn_resnet50_upconv": (
        Published(237e-3, _GPU, (228, 304), _FASTDEPTH),
        Published(2.4, _CPU, (228, 304), _FASTDEPTH),
    ),
    "eigen2014_nyu": (
        Published(23e-3, _GPU, (228, 304), _FASTDEPTH),
        Published(300e-3, _CPU, (228, 304), _FASTDEPTH),
    ),
    "monodepth2_resnet18": (  # not verified: drawn in a chart
        Published(7.1e-3, "a Titan Xp", (192, 640), "arXiv 2211.13202"),
        Published(3.8e-3, "a Titan Xp", (192, 640), "arXiv 2211.13202", "in batches of 16"),
    ),
}
