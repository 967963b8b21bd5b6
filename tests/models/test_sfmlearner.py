"""SfMLearner's and vid2depth's networks against plain formulations of what is released, from its variables on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tf_bundle_writer import write_bundle
from torch import Tensor, nn

from mdepth_fast.geometry import pose_matrix_from_vector
from mdepth_fast.models import (
    DispNet,
    PoseExpNet,
    Vid2DepthDispNet,
    Vid2DepthPoseNet,
    create_model,
    load_checkpoint,
    registry,
)
from mdepth_fast.weights import convert_content, read_content

SMALL = {"width_multiplier": 1 / 16}
WIDTHS = (32, 64, 128, 256, 512, 512, 512)
KERNELS = (7, 5, 3, 3, 3, 3, 3)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts() -> None:
    with torch.device("meta"):
        for name in ("sfmlearner", "sfmlearner_pytorch", "vid2depth"):
            assert count(create_model(name)) == 31_596_900
        for name in ("sfmlearner_pose", "sfmlearner_pytorch_pose", "vid2depth_pose"):
            assert count(create_model(name)) == 1_590_668
        assert count(PoseExpNet(explainability=True)) == 1_590_668 + 1_048_512
        assert count(PoseExpNet(explainability=True, padding="symmetric")) == 3_340_388


# TensorFlow's layers, by their definitions.


def same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's padding: ceil(n / stride) outputs, the odd pixel at the end."""
    pads = []
    for n in (x.shape[-1], x.shape[-2]):
        total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


class Plain:
    """A network in terms of variables in TensorFlow's layouts; makes them up on the way, if there are none."""

    def __init__(self, norm: bool = False) -> None:
        self.norm, self.variables = norm, {}
        self.rng = np.random.default_rng(0)

    def variable(self, name: str, *shape: int, low: float = -1.0) -> Tensor:
        if name not in self.variables:
            size = float(np.prod(shape[:-1])) if len(shape) == 4 else 4.0
            self.variables[name] = (self.rng.uniform(low, 1, shape) * (3 / size) ** 0.5).astype(np.float32)
        return torch.from_numpy(self.variables[name]).double()

    def after(self, x: Tensor, name: str) -> Tensor:
        channels = x.shape[1]
        if not self.norm:
            return F.relu(x + self.variable(f"{name}/biases", channels)[:, None, None])
        mean, beta = (self.variable(f"{name}/BatchNorm/{part}", channels) for part in ("moving_mean", "beta"))
        variance = self.variable(f"{name}/BatchNorm/moving_variance", channels, low=0.1)
        mean, variance, beta = (part[:, None, None] for part in (mean, variance, beta))
        if self.batch:
            mean, variance = x.mean((0, 2, 3), True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        return F.relu((x - mean) / (variance + 0.001).sqrt() + beta)

    batch = False

    def conv(self, x: Tensor, name: str, outputs: int, kernel: int, stride: int = 1) -> Tensor:
        weight = self.variable(f"{name}/weights", kernel, kernel, x.shape[1], outputs)
        return self.after(F.conv2d(same(x, kernel, stride), weight.permute(3, 2, 0, 1), stride=stride), name)

    def up(self, x: Tensor, name: str, outputs: int, kernel: int) -> Tensor:
        """conv2d_transpose: the gradient of the convolution that halves, with weights (H, W, out, in)."""
        weight = self.variable(f"{name}/weights", kernel, kernel, outputs, x.shape[1])
        large = torch.zeros(len(x), outputs, 2 * x.shape[2], 2 * x.shape[3], dtype=x.dtype, requires_grad=True)
        with torch.enable_grad():
            small = F.conv2d(same(large, kernel, 2), weight.permute(3, 2, 0, 1), stride=2)
        return self.after(torch.autograd.grad(small, large, x)[0], name)

    def head(self, x: Tensor, name: str, outputs: int, kernel: int) -> Tensor:
        weight = self.variable(f"{name}/weights", kernel, kernel, x.shape[1], outputs)
        y = F.conv2d(same(x, kernel, 1), weight.permute(3, 2, 0, 1))
        return y + self.variable(f"{name}/biases", outputs)[:, None, None]


def nearest(x: Tensor, size: torch.Size) -> Tensor:
    rows, columns = (torch.arange(n) * m // n for n, m in zip(size, x.shape[-2:]))
    return x[:, :, rows][..., columns]


def legacy_bilinear(x: Tensor) -> Tensor:
    """tf.image.resize_bilinear of TensorFlow 1, x2: output i reads position i / 2, the last pixel is repeated."""
    for dim in (2, 3):
        n = x.shape[dim]
        position = torch.arange(2 * n, dtype=x.dtype) / 2
        low = position.floor().long()
        share = (position - low).view([-1 if k == dim else 1 for k in range(4)])
        x = x.index_select(dim, low) * (1 - share) + x.index_select(dim, (low + 1).clamp(max=n - 1)) * share
    return x


def plain_disp_net(net: Plain, x: Tensor, scope: str, wide: Any) -> list[Tensor]:
    skips = []
    for level, (width, kernel) in enumerate(zip(WIDTHS, KERNELS), 1):
        x = net.conv(x, f"{scope}cnv{level}", wide(width), kernel, 2)
        x = net.conv(x, f"{scope}cnv{level}b", wide(width), kernel)
        skips.append(x)
    maps: list[Tensor] = []
    for level, width in zip(range(7, 0, -1), (512, 512, 256, 128, 64, 32, 16)):
        parts = [net.up(x, f"{scope}upcnv{level}", wide(width), 3)]
        if level > 1:
            skip = skips[level - 2]
            parts = [nearest(parts[0], skip.shape[-2:]), skip]
        if level < 4:
            parts.append(legacy_bilinear(maps[0]))
        x = net.conv(torch.cat(parts, 1), f"{scope}icnv{level}", wide(width), 3)
        if level <= 4:
            maps.insert(0, 10 * net.head(x, f"{scope}disp{level}", 1, 3).sigmoid() + 0.01)
    return maps


def plain_pose_net(net: Plain, x: Tensor, scope: str, wide: Any, n: int, masks: bool) -> tuple[Tensor, list[Tensor]]:
    for level, (width, kernel) in enumerate(zip((16, 32, 64, 128, 256), KERNELS), 1):
        x = net.conv(x, f"{scope}cnv{level}", wide(width), kernel, 2)
    y = net.conv(net.conv(x, f"{scope}pose/cnv6", wide(256), 3, 2), f"{scope}pose/cnv7", wide(256), 3, 2)
    vectors = 0.01 * net.head(y, f"{scope}pose/pred", 6 * n, 1).mean((2, 3)).view(-1, n, 6)
    found: list[Tensor] = []
    for level, width, kernel in zip(range(5, 0, -1), (256, 128, 64, 32, 16), (3, 3, 3, 5, 7)) if masks else ():
        x = net.up(x, f"{scope}exp/upcnv{level}", wide(width), kernel)
        if level < 5:
            logits = net.head(x, f"{scope}exp/mask{level}", 2 * n, kernel)
            explained = [logits[:, 2 * k : 2 * k + 2].softmax(1)[:, 1] for k in range(n)]
            found.insert(0, torch.stack(explained, 1))
    return vectors, found


def wide(channels: int) -> int:
    return max(1, round(channels / 16))


OTHERS = {"global_step": np.array(1), "depth_net/cnv1/weights/Adam": np.zeros(3), "beta1_power": np.array(0.9)}


@pytest.mark.parametrize("kind", ["sfmlearner", "vid2depth", "batch"])
def test_depth_net_of_tensorflow(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a checkpoint on disk, which holds a pose network and an optimiser, too; sizes that become odd on the way."""
    plain = Plain(norm=kind != "sfmlearner")
    images = torch.rand(2, 3, 64, 160, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scope = "depth_net/" if kind == "sfmlearner" else "depth_prediction/depth_net/"
    seen = images if plain.norm else 2 * images - 1
    plain.batch = kind == "batch"
    expected = plain_disp_net(plain, seen, scope, wide)
    if kind == "batch":
        plain_disp_net(plain, seen[:1], scope, wide)
    plain_pose_net(plain, torch.rand(1, 9, 32, 32).double(), "pose_exp_net/", wide, 2, False)
    index = write_bundle(tmp_path / "model-1", plain.variables | OTHERS)
    net: DispNet = (
        DispNet(**SMALL) if kind == "sfmlearner" else Vid2DepthDispNet(batch_statistics=kind == "batch", **SMALL)
    )
    if kind == "vid2depth":
        with pytest.warns(UserWarning, match="meant for batch_statistics=True, the model was created with False"):
            load_checkpoint(net, index)
    else:
        load_checkpoint(net, tmp_path / "model-1")
    net = net.double().eval()
    with torch.no_grad():
        maps = net(images)
        for one, disparity in zip(maps, expected, strict=True):
            torch.testing.assert_close(1 / net.to_depth(one), disparity)
        alone = net(images[:1])[0]
    assert torch.allclose(alone, maps[0][:1], rtol=1e-9) == (kind != "batch")
    # `convert` knows which part of the file it is told to take, and the option it needs.
    factory = DispNet if kind == "sfmlearner" else Vid2DepthDispNet
    monkeypatch.setitem(registry._FACTORIES, "tiny_net", lambda **options: factory(**SMALL, **options))
    _, options, state = convert_content(read_content(index), index, "tiny_net")
    assert options == ({} if kind == "sfmlearner" else {"batch_statistics": True})
    assert state.keys() == net.state_dict().keys()


@pytest.mark.parametrize("kind", ["sfmlearner", "masks", "vid2depth"])
def test_pose_net_of_tensorflow(kind: str, tmp_path: Path) -> None:
    plain = Plain(norm=kind == "vid2depth")
    frames = torch.rand(2, 4, 3, 64, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = frames if plain.norm else 2 * frames - 1
    vectors, masks = plain_pose_net(plain, seen.flatten(1, 2), "pose_exp_net/", wide, 3, kind == "masks")
    index = write_bundle(tmp_path / "model-1", plain.variables | OTHERS)
    net: PoseExpNet
    if kind == "vid2depth":
        net = Vid2DepthPoseNet(sources=3, **SMALL)
        with pytest.warns(UserWarning, match="batch_statistics=True"):
            load_checkpoint(net, index)
    else:
        net = PoseExpNet(sources=3, explainability=kind == "masks", **SMALL)
        load_checkpoint(net, index)
    with torch.no_grad():
        found, logits = net.double().eval()(frames)
    torch.testing.assert_close(found, vectors)
    assert pose_matrix_from_vector(found).shape == (2, 3, 4, 4)
    assert len(logits) == len(masks) == (4 if kind == "masks" else 0)
    for logit, mask in zip(logits, masks):
        torch.testing.assert_close(logit.sigmoid(), mask)


def test_a_variable_too_many_or_too_few_is_named(tmp_path: Path) -> None:
    plain = Plain()
    plain_pose_net(plain, torch.rand(1, 9, 32, 32).double(), "pose_exp_net/", wide, 2, True)
    index = write_bundle(tmp_path / "model-1", plain.variables)
    with pytest.raises(ValueError, match=r"keys unexpected .*exp/mask1/biases"):
        load_checkpoint(PoseExpNet(**SMALL), index)
    del plain.variables["pose_exp_net/cnv3/weights"]
    index = write_bundle(tmp_path / "model-2", plain.variables)
    with pytest.raises(ValueError, match=r"1 keys missing \(cnv3.conv.weight\)"):
        load_checkpoint(PoseExpNet(explainability=True, **SMALL), index)


# SfmLearner-Pytorch.


def port_disp_net(wide: Any) -> nn.ModuleDict:
    net, inputs = nn.ModuleDict(), 3
    for level, (width, kernel) in enumerate(zip(WIDTHS, KERNELS), 1):
        outputs, pad = wide(width), (kernel - 1) // 2
        first, second = nn.Conv2d(inputs, outputs, kernel, 2, pad), nn.Conv2d(outputs, outputs, kernel, 1, pad)
        net[f"conv{level}"] = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        inputs = outputs
    for level, width in zip(range(7, 0, -1), (512, 512, 256, 128, 64, 32, 16)):
        outputs = wide(width)
        skip = wide(WIDTHS[level - 2]) if level > 1 else 0
        up = nn.ConvTranspose2d(inputs, outputs, 3, 2, padding=1, output_padding=1)
        net[f"upconv{level}"] = nn.Sequential(up, nn.ReLU())
        conv = nn.Conv2d(outputs + skip + (level < 4), outputs, 3, padding=1)
        net[f"iconv{level}"] = nn.Sequential(conv, nn.ReLU())
        if level <= 4:
            net[f"predict_disp{level}"] = nn.Sequential(nn.Conv2d(outputs, 1, 3, padding=1), nn.Sigmoid())
        inputs = outputs
    return net


def test_depth_net_of_the_port(tmp_path: Path) -> None:
    port = port_disp_net(wide).double()
    torch.save({"epoch": 3, "state_dict": port.state_dict()}, tmp_path / "dispnet_model_best.pth.tar")
    net = DispNet(padding="symmetric", **SMALL)
    load_checkpoint(net, tmp_path / "dispnet_model_best.pth.tar")
    images = torch.rand(1, 3, 64, 160, dtype=torch.float64)
    x, skips, maps = (images - 0.5) / 0.5, [], []
    with torch.no_grad():
        for level in range(1, 8):
            x = port[f"conv{level}"](x)
            skips.append(x)
        for level in range(7, 0, -1):
            parts = [port[f"upconv{level}"](x)]
            if level > 1:
                skip = skips[level - 2]
                parts = [parts[0][:, :, : skip.shape[2], : skip.shape[3]], skip]
            if level < 4:
                parts.append(F.interpolate(maps[0], scale_factor=2, mode="bilinear", align_corners=False))
            x = port[f"iconv{level}"](torch.cat(parts, 1))
            if level <= 4:
                maps.insert(0, 10 * port[f"predict_disp{level}"](x) + 0.01)
        net = net.double()
        for one, disparity in zip(net(images), maps, strict=True):
            torch.testing.assert_close(1 / net.to_depth(one), disparity)
    with pytest.raises(ValueError, match="does not fit the model"):
        load_checkpoint(DispNet(**SMALL), tmp_path / "dispnet_model_best.pth.tar")  # of the other padding


def test_pose_net_of_the_port(tmp_path: Path) -> None:
    port, inputs = nn.ModuleDict(), 9
    for level, (width, kernel) in enumerate(zip((16, 32, 64, 128, 256, 256, 256), KERNELS), 1):
        outputs = wide(width)
        port[f"conv{level}"] = nn.Sequential(nn.Conv2d(inputs, outputs, kernel, 2, (kernel - 1) // 2), nn.ReLU())
        inputs = outputs
    port["pose_pred"] = nn.Conv2d(inputs, 12, 1)
    for level, width in zip(range(5, 0, -1), (256, 128, 64, 32, 16)):
        outputs = wide(width)
        port[f"upconv{level}"] = nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.ReLU())
        if level < 5:
            port[f"predict_mask{level}"] = nn.Conv2d(outputs, 2, 3, padding=1)
        inputs = outputs
    torch.save({"epoch": 3, "state_dict": port.state_dict()}, tmp_path / "exp_pose_model_best.pth.tar")
    net = PoseExpNet(padding="symmetric", explainability=True, **SMALL)
    load_checkpoint(net, tmp_path / "exp_pose_model_best.pth.tar")
    frames = torch.rand(1, 3, 3, 64, 96)
    with torch.no_grad():
        x = 2 * frames.flatten(1, 2) - 1
        for level in range(1, 6):
            x = port[f"conv{level}"](x)
        pose = port["pose_pred"](port["conv7"](port["conv6"](x))).mean((2, 3))
        masks: list[Tensor] = []
        for level in range(5, 0, -1):
            x = port[f"upconv{level}"](x)
            if level < 5:
                masks.insert(0, port[f"predict_mask{level}"](x))
        vectors, logits = net(frames)
    torch.testing.assert_close(vectors, 0.01 * pose.view(1, 2, 6))
    for logit, mask in zip(logits, masks, strict=True):
        torch.testing.assert_close(logit, mask)


# What holds for all of them.


def test_running_statistics_have_the_decay_of_the_release() -> None:
    net = Vid2DepthPoseNet(**SMALL)
    frames = torch.rand(4, 3, 3, 64, 96)
    net(frames)
    assert net.cnv1.norm.running_mean.abs().max() > 0  # type: ignore[union-attr, operator]
    x = F.conv2d(F.pad(frames.flatten(1, 2), (2, 3, 2, 3)), net.cnv1.conv.weight, stride=2)  # type: ignore[union-attr, arg-type]
    torch.testing.assert_close(net.cnv1.norm.running_mean, 0.001 * x.mean((0, 2, 3)))  # type: ignore[union-attr]
    assert net.cnv1.norm.eps == 1e-3 and net.cnv1.norm.weight is None  # type: ignore[union-attr]


def test_one_image_at_the_smallest_size() -> None:
    """Normalised by itself, a map of one value is its bias."""
    net = Vid2DepthDispNet(batch_statistics=True, **SMALL).eval()
    with torch.no_grad():
        maps = net(torch.rand(1, 3, 32, 32))
    assert [tuple(one.shape) for one in maps] == [(1, 1, 32 >> s, 32 >> s) for s in range(4)]
    assert all(one.isfinite().all() for one in maps)


def test_scales_are_chosen_and_a_range_changes_what_the_decoder_sees() -> None:
    images = torch.rand(1, 3, 64, 64)
    net = DispNet(scales=(2, 0), **SMALL)
    other = DispNet(min_depth=1.0, max_depth=2.0, **SMALL)
    other.load_state_dict(net.state_dict())
    coarse, fine = net(images)
    assert coarse.shape[-1] == 16 and fine.shape[-1] == 64
    assert torch.equal(net.infer(images), fine)
    assert torch.equal(other(images)[3], net.__class__.forward(_with_scales(net), images)[3])
    assert not torch.equal(other(images)[0], fine)


def _with_scales(net: DispNet) -> DispNet:
    net.scales = (0, 1, 2, 3)
    return net


def test_prediction_and_folded_batch_norms() -> None:
    net: Any = Vid2DepthDispNet(input_size=(64, 96), **SMALL)
    net(torch.rand(2, 3, 64, 96))
    images = torch.rand(2, 3, 50, 80)
    prediction = net.predict(images)
    assert prediction.depth.shape == (2, 1, 50, 80) and prediction.kind == "relative"
    torch.testing.assert_close(net.optimize_for_inference().predict(images).depth, prediction.depth)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: DispNet(padding="valid"), ValueError, "padding: expected one of"),  # type: ignore[arg-type]
        (lambda: DispNet(batch_statistics=True), ValueError, "batch_statistics: expected False without batch_norm"),
        (lambda: DispNet(width_multiplier=0), ValueError, "width_multiplier: expected a positive number, got 0"),
        (lambda: PoseExpNet(sources=0), ValueError, "sources: expected at least 1, got 0"),
        (lambda: DispNet(**SMALL)(torch.rand(1, 3, 48, 64)), ValueError, "multiples of 32, got 48x64"),
        (lambda: DispNet(**SMALL)(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)), TypeError, "divide by 255"),
        (lambda: PoseExpNet(**SMALL)([1]), TypeError, "frames: expected a torch.Tensor, got list"),
        (lambda: PoseExpNet(**SMALL)(torch.zeros(1, 3, 3, 64, 64).byte()), TypeError, "frames: .* got torch.uint8"),
        (lambda: PoseExpNet(**SMALL)(torch.rand(1, 2, 3, 64, 64)), ValueError, r"expected \(B, 3, 3, H, W\), got"),
        (lambda: PoseExpNet(**SMALL)(torch.rand(1, 3, 3, 16, 64)), ValueError, "at least 32, got 16x64"),
        (
            lambda: PoseExpNet(explainability=True, **SMALL)(torch.rand(1, 3, 3, 40, 64)),
            ValueError,
            "multiples of 32, got 40x64",
        ),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
