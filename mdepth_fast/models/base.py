"""What all networks of the package share: argument checks, prediction, the keys of their published files."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..alignment import affine_from_reference, camera_matrices, scale_from_ground, scale_from_reference
from ..geometry import depth_from_disparity
from ..kinds import Kind, check_kind
from ..ops.disparity_to_depth import disparity_to_depth
from .lanczos import resize_lanczos
from .pretrained import Pretrained

__all__ = [
    "DepthModel",
    "DepthPrediction",
    "DisparityModel",
    "Kind",
    "Model",
    "PoseModel",
    "check_images",
    "eval_mode",
    "in_float32",
    "stack_pair",
]


# What can make each kind metric.
_WAYS: dict[Kind, tuple[str, ...]] = {
    "metric": (),
    "relative": ("scale", "reference", "camera_height"),
    "affine_inverse": ("reference",),
    "disparity": ("baseline", "reference", "camera_height"),
}


@dataclass(frozen=True)
class DepthPrediction:
    """What a network predicts for images: `depth` (B, 1, H, W), which holds what `kind` says.

    kind "metric": depth along the optical axis in metres; "relative": depth up to one factor per image;
    "affine_inverse": inverse depth up to a scale and a shift per image, larger is closer (align it before you compare
    it with anything); "disparity": x in the left image minus x in the right one of a rectified pair, in pixels.
    unit: "m" for metric depth, "px" for disparity, else None. ValueError for another kind, or a unit of another kind.
    """

    depth: Tensor
    kind: Kind
    unit: str | None

    def __post_init__(self) -> None:
        check_kind(self.kind, self.unit)

    def to_metric(
        self,
        *,
        scale: float | Tensor | None = None,
        reference: Tensor | None = None,
        baseline: float | None = None,
        camera_height: float | None = None,
        K: Tensor | None = None,
    ) -> "DepthPrediction":
        """The same depth in metres, by exactly one of `scale`, `reference`, `baseline` and `camera_height`.

        Args:
            scale: metres per unit of relative depth: a number, or a tensor (B,).
            reference: depth in metres (B, 1, H, W) at some points, 0 or NaN elsewhere. Relative depth is scaled by the
                median ratio; to inverse depth, scale and shift are fitted by least squares. Each image has its own.
            baseline: distance in metres between the cameras of the pair that disparity belongs to; needs `K`.
                z = fx baseline / disparity, for cameras with one principal point. Networks trained on pairs that
                predict relative depth take their baseline when they are created, or its effect as `scale`.
            camera_height: height in metres of the camera above the ground, whose plane is sought in the lower middle
                of each image, see `alignment.scale_from_ground`; needs `K`.
            K: camera matrix (3, 3) or (B, 3, 3), in pixels of `depth`.

        Returns:
            kind "metric", unit "m". Depth is infinite where inverse depth or disparity is not positive.

        Raises:
            ValueError: none or several of the ways, one that does not suit the kind (nothing suits metric depth), or
                an image that does not determine its scale: too few reference points, no plane of the ground.
        """
        ways = {"scale": scale, "reference": reference, "baseline": baseline, "camera_height": camera_height}
        given = [name for name, value in ways.items() if value is not None]
        if self.kind == "metric":
            raise ValueError("kind: expected depth without a scale or disparity, got depth that is metric already")
        possible = ", ".join(_WAYS[self.kind])
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise ValueError(f"to_metric: expected exactly one of {possible} for kind {self.kind!r}, got {got}")
        if given[0] not in _WAYS[self.kind]:
            raise ValueError(f"{given[0]}: cannot make kind {self.kind!r} metric, expected {possible}")
        if K is None and (baseline is not None or camera_height is not None):
            raise ValueError(f"K: expected the camera matrix, which {given[0]} needs, got none")
        values = self.depth.to(torch.promote_types(self.depth.dtype, torch.float32))
        cameras = None if K is None else camera_matrices(K, len(values)).to(values)

        if baseline is not None and cameras is not None:
            if not 0 < baseline < float("inf"):
                raise ValueError(f"baseline: expected a positive number of metres, got {baseline}")
            return DepthPrediction(depth_from_disparity(values, _per_image(cameras[:, 0, 0]), baseline), "metric", "m")
        if self.kind == "affine_inverse" and reference is not None:
            factor, shift = affine_from_reference(values, reference)
            inverse = values * _per_image(factor.to(values)) + _per_image(shift.to(values))
            return DepthPrediction(depth_from_disparity(inverse, 1.0, 1.0), "metric", "m")

        if self.kind == "disparity":
            values = depth_from_disparity(values, 1.0, 1.0)
        if reference is not None:
            factor = scale_from_reference(values, reference)
        elif camera_height is not None and cameras is not None:
            factor = scale_from_ground(values, cameras, camera_height)
        else:
            factor = torch.as_tensor(scale, dtype=torch.float64)
            if tuple(factor.shape) not in ((), (len(values),)):
                raise ValueError(f"scale: expected a number or shape ({len(values)},), got {tuple(factor.shape)}")
            if not (factor.isfinite() & (factor > 0)).all():
                raise ValueError(f"scale: expected positive numbers of metres, got {factor.tolist()}")
        return DepthPrediction(values * _per_image(factor.to(values)), "metric", "m")


def _per_image(numbers: Tensor) -> Tensor:
    return numbers.reshape(-1, 1, 1, 1)


M = TypeVar("M", bound="Model")


class Model(Pretrained):
    """A network that `load_checkpoint` can fill, and that `save_pretrained` and `from_pretrained` write and read."""

    checkpoint_prefix: ClassVar[str]  # of its keys in a Lightning checkpoint of this package
    # What the constructor must be told for weights that `translate` has translated, such as a rule of decoding.
    published_options: ClassVar[Mapping[str, Any]] = {}
    engine_method: ClassVar[str] = "forward"  # what another engine computes; it takes and gives tensors
    float32_only: ClassVar[bool] = False  # autocast changes nothing
    runs_on: tuple[str, str] | None = None  # engine and precision of a copy of `optimize_for_inference`

    def optimize_for_inference(self: M, *, engine: str = "native", dtype: str = "auto") -> M:
        """A copy for inference only, in eval mode: same output within rounding, without gradients.

        Args:
            engine: "native", this package's fused ops, batch norms folded, channels_last; "torch", PyTorch with nothing
                changed; "openvino" or "onnxruntime", extras of that name, on a CPU; "auto", the one of these that is
                installed and that the table in `engines/fastest.json` says is the fastest for this network on this kind
                of CPU, "native" for all that it does not have.
            dtype: "float32", "bfloat16" for networks in float32 on hardware with units for it, "auto" for the precision
                of the network.

        OpenVINO and ONNX Runtime read the network from a file of ONNX, which is written when an image of some size
        first comes (seconds), and kept in the cache folder: `MDEPTH_CACHE`, else mdepth_fast in the user's. They run
        what `predict` needs: `forward` of a network that returns several maps stays PyTorch's. Their output is compared
        with PyTorch's before it is used: no value may differ by more than 1e-4, relative to max(|value|, the mean of
        |value|); in bfloat16 the mean of this must not be above 0.05.

        Raises:
            ValueError: another engine or dtype; an engine that is not installed or cannot take this network, bfloat16
                without units for it. When an image comes: the engine cannot run the network, or gives something else.
        """
        from .optimize import optimized

        made: M = optimized(self, engine, dtype)
        return made

    def _native_copy(self) -> "Model":
        """The copy for this package's own kernels."""
        return copy.deepcopy(self).eval().requires_grad_(False)

    def published_files(self) -> dict[str, dict[str, str]]:
        """For a system published as a folder: file name to {key in the file: key in `state_dict()`}."""
        raise ValueError(f"{type(self).__name__} is published as one file, not as a folder")

    def publish(self) -> dict[str, dict[str, Any]]:
        """The content of a published folder, by file: the inverse of `published_files`."""
        own = self.state_dict()
        return {
            name: {key: own[to].detach().cpu().contiguous() for key, to in keys.items()}
            for name, keys in self.published_files().items()
        }

    def translate_file(self, name: str, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """The content of the file `name` of a published folder under the keys of `published_files()`."""
        return content

    def translate(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """The content of one published file under the keys and in the layout of `state_dict()`.

        Content that is no published file of this system is returned unchanged; strict matching follows either way.
        """
        return content

    @classmethod
    def options_of(cls, content: Mapping[str, Any]) -> dict[str, Any] | None:
        """Options for the constructor that the names and shapes of a published file tell, those that differ from the
        defaults; None for another file."""
        return None


# Of a network that does not say more.
_KIND_BY_UNIT: dict[str | None, Kind] = {"m": "metric", "px": "disparity", None: "relative"}


class DepthModel(Model):
    """A network that maps images (B, 3, H, W) in [0, 1] to depth; it normalises the images itself.

    `forward` returns the input of the loss in its paper (a list of maps, logits, ...), `infer` and `to_depth` convert
    it to depth, and `predict` is the same for all networks. `kind`, which follows from `unit` unless a network
    overrides it, says what `predict` gives.
    """

    checkpoint_prefix = "depth_net."
    engine_method = "infer"
    multiple: ClassVar[int] = 32  # height and width of the input are multiples of it
    takes_views: ClassVar[bool] = False  # trained on images that a data set of views has resized
    takes_intrinsics: ClassVar[bool] = False  # `predict` takes the camera matrix as `K`
    interpolation: ClassVar[str] = "bilinear"  # of the map back to the size of the images
    align_corners: ClassVar[bool] = False  # in this interpolation

    def __init__(self, *, unit: str | None, input_size: tuple[int, int] | None) -> None:
        super().__init__()
        if unit not in _KIND_BY_UNIT:
            raise ValueError(f'unit: expected "m", "px" or None, got {unit!r}')
        self.unit = unit
        self.input_size = input_size

    @property
    def kind(self) -> Kind:
        return _KIND_BY_UNIT[self.unit]

    def infer(self, images: Tensor) -> Tensor:
        """Maps images (B, 3, h, w) at the network's size to the map (B, 1, h', w') that `predict` resizes back."""
        raise NotImplementedError

    def to_depth(self, values: Tensor) -> Tensor:
        """Converts the resized map of `infer` to the depth in `DepthPrediction`."""
        return values

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """The size to which `predict` resizes images of the given size."""
        return self.input_size or (_nearest(height, self.multiple), _nearest(width, self.multiple))

    def ground_truth(self, depth: Tensor, size: tuple[int, int]) -> Tensor:
        """Reduces depth (B, 1, H, W) at the images' size to the pixels to compare with an output of `size` (h, w).

        It takes the nearest pixel, so that nothing is averaged over an edge or with a missing value.
        """
        return depth if depth.shape[-2:] == size else F.interpolate(depth, size, mode="nearest-exact")

    @torch.no_grad()
    def predict(self, images: Tensor, *, size: tuple[int, int] | None = None, flip: bool = False) -> DepthPrediction:
        """Depth of images (3, H, W) or (B, 3, H, W), floating point in [0, 1], of any size, on the network's device.

        The images are resized to `size` (H, W), else to `network_size`; the network's map is resized back
        (`interpolation`) and converted to depth. Runs in eval mode and leaves every module in the mode it had.
        `flip` blends in the mirrored prediction of the mirrored image as published (arXiv 1806.01260, after Monodepth,
        arXiv 1609.03677): the mean of both, and near the left and right borders the one without the occlusion.

        TypeError if `images` is no floating-point tensor, ValueError for another shape or values outside [0, 1].
        """
        if isinstance(images, Tensor) and images.dim() == 3:
            images = images.unsqueeze(0)
        check_images(images, "images")
        if images.numel() and not (images.amin() >= -1e-3 and images.amax() <= 1 + 1e-3):  # not NaN either
            low, high = images.amin().item(), images.amax().item()
            raise ValueError(f"images: expected values in [0, 1], got {low:.4g} to {high:.4g}")
        parameter = next(self.parameters())
        # Resized in float32 at least: half precision has no antialiased resizing.
        images = images.to(parameter.device, torch.promote_types(parameter.dtype, torch.float32))
        shape = (images.shape[-2], images.shape[-1])
        height, width = size or self.network_size(*shape)
        if (height, width) != shape:
            images = self.resize(images, (height, width))
        images = images.to(parameter.dtype)

        with eval_mode(self):
            if flip:
                plain, mirrored = self.infer(torch.cat([images, images.flip(-1)])).chunk(2)
                values = _blend_flipped(plain, mirrored.flip(-1))
            else:
                values = self.infer(images)
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        values = F.interpolate(values, shape, mode=self.interpolation, align_corners=self.align_corners)
        return DepthPrediction(self.to_depth(values), self.kind, self.unit)

    def resize(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Resizes images (B, 3, h, w) to `size` as in the system's training."""
        return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)

    def _native_copy(self) -> Model:
        from .optimize import fold_batch_norms

        return fold_batch_norms(self, self.network_size(64, 64)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class DisparityModel(DepthModel):
    """A network whose `forward` returns sigmoid disparity maps at several scales, with their depth range."""

    takes_views = True

    def __init__(
        self,
        *,
        min_depth: float,
        max_depth: float,
        scales: Sequence[int],
        unit: str | None,
        input_size: tuple[int, int] | None,
    ) -> None:
        super().__init__(unit=unit, input_size=input_size)
        if not 0 < min_depth < max_depth:
            raise ValueError(
                f"min_depth, max_depth: expected 0 < min_depth < max_depth, got {min_depth} and {max_depth}"
            )
        if not scales or len(set(scales)) != len(scales) or not set(scales) <= {0, 1, 2, 3}:
            raise ValueError(f"scales: expected distinct numbers out of 0, 1, 2, 3, got {scales!r}")
        self.min_depth, self.max_depth = min_depth, max_depth
        self.scales = tuple(scales)

    def infer(self, images: Tensor) -> Tensor:
        return self(images)[self.scales.index(min(self.scales))]

    def to_depth(self, values: Tensor) -> Tensor:
        return disparity_to_depth(values, min_depth=self.min_depth, max_depth=self.max_depth)

    def resize(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Lanczos, as the data sets of views resize the images of the training."""
        return resize_lanczos(images, size)


class PoseModel(Model):
    """Maps two images (B, 3, H, W) to the motion first -> second: axis-angle (B, 3) and translation (B, 3)."""

    checkpoint_prefix = "pose_net."
    scale_by_inverse_depth: ClassVar[bool] = (
        False  # the translation is to be multiplied by the image's mean of 1 / depth
    )
    reads_features: ClassVar[bool] = False  # the depth encoder's last features in place of images


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """Puts a network into eval mode; afterwards every module is in the mode it had."""
    modes = [(module, module.training) for module in net.modules()]
    try:
        net.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def in_float32(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)` outside of autocast: for layers whose output is a number, such as a disparity, and not a feature.

    bfloat16 has eight binary digits: a disparity of 30 pixels would move in steps of an eighth of a pixel.
    """
    weight = next(layer.parameters())  # and not x, of which torch.fx knows nothing
    if weight.device.type == "meta" or not torch.is_autocast_enabled(weight.device.type):
        return layer(x)  # type: ignore[no-any-return]
    with torch.autocast(weight.device.type, enabled=False):
        return layer(x.to(weight.dtype))  # type: ignore[no-any-return]


def check_images(images: Tensor, name: str) -> None:
    """TypeError or ValueError unless `images` is a floating-point tensor (B, 3, H, W)."""
    if not isinstance(images, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(images).__name__}")
    if not images.is_floating_point():
        hint = "; divide by 255 first" if images.dtype == torch.uint8 else ""
        raise TypeError(f"{name}: expected floating point in [0, 1], got {images.dtype}{hint}")
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"{name}: expected shape (B, 3, H, W), got {tuple(images.shape)}")


def stack_pair(first: Tensor, second: Tensor, check: Callable[[Tensor, str], None] = check_images) -> Tensor:
    """Two batches of images (B, 3, H, W), or what else `check` passes, as one (B, 6, H, W), checked."""
    check(first, "first")
    check(second, "second")
    if first.shape != second.shape:
        raise ValueError(f"second: expected the shape of first, {tuple(first.shape)}, got {tuple(second.shape)}")
    return torch.cat([first, second], 1)


def _nearest(length: int, multiple: int) -> int:
    return max(2 * multiple, int(length / multiple + 0.5) * multiple)


def _blend_flipped(plain: Tensor, mirrored: Tensor) -> Tensor:
    """Blends two maps (B, 1, H, W) in the image's frame, with ramps over 5 to 10 % of the width at either side."""
    x = torch.linspace(0, 1, plain.shape[-1], dtype=plain.dtype, device=plain.device)
    left = 1 - (20 * (x - 0.05)).clamp(0, 1)
    right = left.flip(0)
    return left * mirrored + right * plain + (1 - left - right) * (plain + mirrored) / 2
