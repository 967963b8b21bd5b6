"""Depth and pose nets against the plain formulation, and their contracts."""

import pytest
import torch

from mdepth_fast.models import Monodepth2, PoseCNN, PoseNet, ResNetEncoder, create_model
from mdepth_fast.models.monodepth2 import _Level


def count(module):
    return sum(p.numel() for p in module.parameters())


def images(*shape, dtype=torch.float32, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_same(actual, expected, tolerance, name):
    """Largest difference against the largest value of the whole tensor."""
    assert actual.shape == expected.shape, name
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max(), name


def compare_with_plain(plain, net, reference, inputs, tolerance):
    """Outputs, the gradient of every parameter and the running statistics."""
    plain.copy_weights(net, reference)
    outputs, expected = net(*inputs), reference(*inputs)
    for n, (y, z) in enumerate(zip(outputs, expected, strict=True)):
        assert_same(y, z, tolerance, f"output {n}")
    grads = [torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=z.dtype) for z in expected]
    torch.autograd.backward(outputs, grads)
    torch.autograd.backward(expected, grads)
    for (name, p), q in zip(net.named_parameters(), reference.parameters(), strict=True):
        assert_same(p.grad, q.grad, tolerance, name)
    for (name, b), c in zip(net.state_dict().items(), reference.state_dict().values(), strict=True):
        if "running" in name:
            assert_same(b, c, tolerance, name)


def test_parameter_counts():
    depth, pose = Monodepth2(18), PoseNet(18)
    assert count(depth.encoder) == 11_176_512
    assert count(depth.decoder) == 3_152_724
    assert count(Monodepth2(50).decoder) == 9_014_100
    assert count(pose.encoder) == 11_185_920
    assert count(pose.decoder) == 1_314_572
    assert count(PoseCNN()) == 1_586_774


@pytest.mark.parametrize(("layers", "blocks"), [(18, (2, 2, 2, 2)), (34, (3, 4, 6, 3)), (50, (3, 4, 6, 3))])
def test_encoder_has_the_names_of_torchvision(layers, blocks):
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {"conv1.weight", *(f"bn1.{n}" for n in norm)}
    for stage, repeats in enumerate(blocks, 1):
        for block in range(repeats):
            base = f"layer{stage}.{block}"
            for n in range(1, 4 if layers == 50 else 3):
                names |= {f"{base}.conv{n}.weight", *(f"{base}.bn{n}.{part}" for part in norm)}
            if block == 0 and (stage > 1 or layers == 50):
                names |= {f"{base}.downsample.0.weight", *(f"{base}.downsample.1.{part}" for part in norm)}
    assert set(ResNetEncoder(layers).state_dict()) == names


@pytest.mark.parametrize("layers", [18, 34, 50])
def test_encoder_maps(layers):
    encoder = ResNetEncoder(layers).eval()
    with torch.no_grad():
        maps = encoder(images(1, 3, 64, 96))
        last = encoder.last(images(1, 3, 64, 96))
    wide = (64, 256, 512, 1024, 2048) if layers == 50 else (64, 64, 128, 256, 512)
    assert [tuple(m.shape) for m in maps] == [(1, c, 64 >> n, 96 >> n) for n, c in enumerate(wide, 1)]
    assert encoder.channels == wide
    torch.testing.assert_close(last, maps[-1])


def test_unknown_number_of_layers():
    with pytest.raises(ValueError, match=r"layers: expected one of \[18, 34, 50, 101, 152\], got 20"):
        ResNetEncoder(20)


@pytest.mark.parametrize("layers", [18, 50])
@pytest.mark.parametrize("training", [True, False])
def test_depth_net_equals_plain_formulation_in_float64(plain, layers, training):
    torch.manual_seed(0)
    net, reference = Monodepth2(layers).double(), plain.PlainDepthNet(layers).double()
    net.train(training)
    reference.train(training)
    compare_with_plain(plain, net, reference, [images(3, 3, 64, 96, dtype=torch.float64)], 1e-10)


@pytest.mark.parametrize("layers", [18, 50])
def test_pose_net_equals_plain_formulation_in_float64(plain, layers):
    torch.manual_seed(0)
    inputs = [images(3, 3, 64, 96, dtype=torch.float64, seed=s) for s in (0, 1)]
    compare_with_plain(plain, PoseNet(layers).double(), plain.PlainPoseNet(layers).double(), inputs, 1e-10)


def test_depth_net_is_as_exact_in_float32_as_the_plain_formulation(plain):
    torch.manual_seed(0)
    exact = plain.PlainDepthNet().double()
    x = images(2, 3, 64, 96)
    nets = [Monodepth2(), plain.PlainDepthNet()]
    for net in nets:
        plain.copy_weights(net, exact)
    with torch.no_grad():
        expected = exact(x.double())
        ours, theirs = ([(y.double() - z).square().mean().sqrt() for y, z in zip(n(x), expected)] for n in nets)
    for a, b in zip(ours, theirs, strict=True):
        assert a < 3 * b + 1e-7


@pytest.mark.parametrize("training", [True, False])
def test_pose_cnn_follows_its_definition(training):
    net = PoseCNN().double().train(training)
    first, second = (images(2, 3, 70, 99, dtype=torch.float64, seed=s) for s in (0, 1))
    x = torch.cat([first, second], 1)
    for conv, kernel in zip(net.net, (7, 5, 3, 3, 3, 3, 3), strict=True):
        x = torch.conv2d(x, conv.weight, conv.bias, 2, (kernel - 1) // 2).clamp(min=0)
    x = torch.conv2d(x, net.pose_conv.weight, net.pose_conv.bias).mean((2, 3)) / 100
    axis_angle, translation = net(first, second)
    torch.testing.assert_close(axis_angle, x[:, :3])
    torch.testing.assert_close(translation, x[:, 3:])
    assert net.scale_by_inverse_depth and not PoseNet.scale_by_inverse_depth


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["monodepth2_resnet18", "monodepth2_resnet50"])
def test_depth_maps_have_the_sizes_of_the_scales(name, batch):
    net = create_model(name).eval()
    with torch.no_grad():
        maps = net(images(batch, 3, 96, 64))
    assert [tuple(m.shape) for m in maps] == [(batch, 1, 96 >> s, 64 >> s) for s in range(4)]
    assert all(m.min() > 0 and m.max() < 1 for m in maps)


def test_heads_follow_the_order_of_scales(plain):
    torch.manual_seed(0)
    net, reference = Monodepth2(scales=(2, 0)), plain.PlainDepthNet(scales=(2, 0))
    plain.copy_weights(net, reference)
    maps = net(images(2, 3, 64, 64))
    assert [m.shape[-1] for m in maps] == [16, 64]
    for y, z in zip(maps, reference(images(2, 3, 64, 64)), strict=True):
        torch.testing.assert_close(y, z)


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "strided", "expanded"])
def test_layout_of_the_images_does_not_matter(layout):
    net = Monodepth2().eval()
    x = images(2, 3, 64, 96)
    x = x[:1].expand(2, -1, -1, -1).contiguous() if layout == "expanded" else x
    views = {
        "channels_last": lambda: x.contiguous(memory_format=torch.channels_last),
        "transposed": lambda: x.transpose(2, 3).contiguous().transpose(2, 3),
        "strided": lambda: torch.stack([x, x * float("nan")], -1)[..., 0],
        "expanded": lambda: x[:1].expand(2, -1, -1, -1),
    }
    with torch.no_grad():
        for y, z in zip(net(views[layout]()), net(x), strict=True):
            torch.testing.assert_close(y, z, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.rand(1, 3, 60, 96), ValueError, "multiples of 32, at least 64, got 60x96"),
        (torch.rand(1, 3, 64, 100), ValueError, "got 64x100"),
        (torch.rand(1, 3, 32, 64), ValueError, "at least 64, got 32x64"),
        (torch.rand(3, 64, 64), ValueError, r"images: expected shape \(B, 3, H, W\), got \(3, 64, 64\)"),
        (torch.rand(1, 1, 64, 64), ValueError, r"got \(1, 1, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError, "torch.uint8; divide by 255"),
        ([1.0], TypeError, "images: expected a torch.Tensor, got list"),
    ],
)
def test_depth_net_refuses_bad_images(bad, error, message):
    with pytest.raises(error, match=message):
        Monodepth2()(bad)


@pytest.mark.parametrize("net", [PoseNet, PoseCNN])
def test_pose_nets_refuse_bad_images(net):
    net, x = net(), torch.rand(1, 3, 64, 64)
    with pytest.raises(
        ValueError, match=r"second: expected the shape of first, \(1, 3, 64, 64\), got \(2, 3, 64, 64\)"
    ):
        net(x, x.expand(2, -1, -1, -1))
    with pytest.raises(TypeError, match=r"second: .*torch.uint8"):
        net(x, x.byte())
    with pytest.raises(ValueError, match=r"first: expected shape"):
        net(x[0], x)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"min_depth": 2.0, "max_depth": 1.0}, "0 < min_depth < max_depth, got 2.0 and 1.0"),
        ({"scales": (0, 4)}, r"scales: .*got \(0, 4\)"),
        ({"scales": ()}, "scales"),
        ({"scales": (1, 1)}, "scales"),
        ({"unit": "cm"}, "unit: .*'cm'"),
    ],
)
def test_depth_net_refuses_bad_options(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Monodepth2(**kwargs)


def test_bfloat16_autocast():
    torch.manual_seed(0)
    net, x = Monodepth2(), images(2, 3, 64, 96)
    with torch.autocast("cpu", torch.bfloat16):
        low = net(x)
    full = net(x)
    sum(m.mean() for m in low).backward()
    assert low[0].dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())
    for y, z in zip(low, full, strict=True):
        assert (y - z).abs().max() < 0.05


def test_nets_can_be_exported():
    net, x = Monodepth2().eval(), images(1, 3, 64, 64)
    exported = torch.export.export(net, (x,)).module()
    for y, z in zip(exported(x), net(x), strict=True):
        torch.testing.assert_close(y, z)


def test_decoder_level_compiles_with_gradients():
    torch._dynamo.reset()
    level = _Level(6, 5, 4).to(memory_format=torch.channels_last)
    compiled = torch.compile(level, fullgraph=True)
    x = images(2, 6, 5, 7).contiguous(memory_format=torch.channels_last)
    side = images(2, 5, 6, 10).contiguous(memory_format=torch.channels_last)
    grads = []
    for run in (level, compiled):
        level.zero_grad()
        run(x, side).square().sum().backward()
        grads.append([p.grad.clone() for p in level.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


def test_whole_nets_trace_into_one_graph():
    torch._dynamo.reset()
    x = images(2, 3, 64, 64)
    depth, pose = Monodepth2(), PoseNet()
    maps = torch.compile(depth, fullgraph=True, backend="aot_eager")(x)
    motion = torch.compile(pose, fullgraph=True, backend="aot_eager")(x, x.flip(-1))
    for y, z in zip((*maps, *motion), (*depth(x), *pose(x, x.flip(-1))), strict=True):
        torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-5)
