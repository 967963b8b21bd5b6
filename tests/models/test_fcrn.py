"""FCRN: published counts and sizes, the up-convolution by both its definitions, the released weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mdepth_fast.models import FCRN, ResNetEncoder, UpConvolution, create_model, load_checkpoint

# Row and column parity of the output, and padding (left, right, top, bottom) of the four convolutions of the fast form.
FAST = {
    "A": (0, 0, (1, 1, 1, 1), (1, 1, 1, 1)),
    "B": (1, 0, (1, 1, 0, 1), (1, 1, 1, 0)),
    "C": (0, 1, (0, 1, 1, 1), (1, 0, 1, 1)),
    "D": (1, 1, (0, 1, 0, 1), (1, 0, 1, 0)),
}


def unpool(x):
    y = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    y[:, :, ::2, ::2] = x
    return y


def interleave(x, kernels, biases, released):
    """The paper's four convolutions: `kernels` (O, C, h, w) and `biases` by letter."""
    y = x.new_empty(len(x), len(biases["A"]), 2 * x.shape[2], 2 * x.shape[3])
    for letter, (row, column, paper, top_left) in FAST.items():
        padded = F.pad(x, top_left if released else paper)
        y[:, :, row::2, column::2] = F.conv2d(padded, kernels[letter], biases[letter])
    return y


def up_convolution(inputs, outputs, released=False, transposed=False, dtype=torch.float32):
    """With one of the two layouts of its weights, which take different ways on a CPU; and its 5x5 kernel."""
    torch.manual_seed(0)
    up = UpConvolution(inputs, outputs, released_padding=released).to(dtype)
    kernel = torch.randn(outputs, inputs, 5, 5, dtype=dtype) / (inputs * 5) ** 0.5
    weight = kernel.flip(2, 3).transpose(0, 1)
    layout = torch.channels_last if transposed else torch.contiguous_format
    with torch.no_grad():
        up.weight.data = weight.contiguous(memory_format=layout)
        up.bias.copy_(torch.randn(outputs, 2, 2))
    assert up.weight.is_contiguous() != transposed
    return up, kernel


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "parameters", "gmac"),
    [
        ("fcrn_resnet50_upproj", 63_572_737, 17.2),
        ("fcrn_resnet50_upconv", 43_022_657, 10.0),
        ("fcrn_resnet50_deconv", 28_397_057, 6.5),
    ],
)
def test_published_counts_and_sizes(name, parameters, gmac):
    with torch.device("meta"):
        net = create_model(name).eval()
    assert count(net) == parameters
    assert count(net.encoder) == 23_508_096
    assert count(net.transit) + count(net.transit_norm) == 2_100_224
    assert count(net.head) == 577
    seen = {}
    for module_name, module in net.named_modules():
        module.register_forward_hook(lambda _, __, y, name=module_name: seen.update({name: tuple(y.shape[1:])}))
    with FlopCounterMode(display=False) as flops:
        net(torch.empty(1, 3, 228, 304, device="meta"))
    assert flops.get_total_flops() / 2e9 == pytest.approx(gmac, abs=0.05)
    sizes = {
        "encoder.conv1": (64, 114, 152),
        "encoder.layer1": (256, 57, 76),
        "encoder.layer2.0.conv1": (128, 29, 38),
        "encoder.layer2": (512, 29, 38),
        "encoder.layer3": (1024, 15, 19),
        "encoder.layer4": (2048, 8, 10),
        "transit": (1024, 8, 10),
        "levels.0": (512, 16, 20),
        "levels.1": (256, 32, 40),
        "levels.2": (128, 64, 80),
        "levels.3": (64, 128, 160),
        "": (1, 128, 160),
    }
    assert seen == seen | sizes
    assert (net.kind, net.unit, net.network_size(480, 640)) == ("metric", "m", (228, 304))


def test_counts_of_the_up_projections():
    with torch.device("meta"):
        net = create_model("fcrn_resnet50_upproj")
    assert [count(level) for level in net.levels] == [28_581_376, 7_147_264, 1_787_776, 447_424]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(1, 6, 8, 10), (3, 5, 1, 7), (2, 7, 5, 1)])
def test_up_convolution_is_unpooling_and_a_5x5_convolution(shape, transposed):
    up, kernel = up_convolution(shape[1], 4, transposed=transposed)
    x = torch.randn(shape)
    with torch.no_grad():
        up.bias.copy_(torch.randn(4)[:, None, None].expand(4, 2, 2))
        y = up(x)
    torch.testing.assert_close(y, F.conv2d(unpool(x), kernel, up.bias[:, 0, 0], padding=2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("shape", [(1, 6, 4, 5), (3, 5, 1, 7), (2, 7, 5, 1)])
def test_up_convolution_is_the_four_interleaved_ones(shape, released, transposed):
    up, kernel = up_convolution(shape[1], 4, released, transposed, torch.float64)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    kernels = {letter: kernel[:, :, row::2, column::2] for letter, (row, column, *_) in FAST.items()}
    assert [tuple(k.shape[2:]) for k in kernels.values()] == [(3, 3), (2, 3), (3, 2), (2, 2)]
    biases = {letter: up.bias[:, row, column] for letter, (row, column, *_) in FAST.items()}
    kernel.requires_grad_()
    kernels = {letter: kernel[:, :, row::2, column::2] for letter, (row, column, *_) in FAST.items()}
    y, expected = up(x), interleave(x, kernels, biases, released)
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(y)
    ours = torch.autograd.grad(y, (x, up.bias, up.weight), grad)
    theirs = torch.autograd.grad(expected, (x, up.bias, kernel), grad)
    torch.testing.assert_close(ours[:2], theirs[:2])
    torch.testing.assert_close(ours[2], theirs[2].flip(2, 3).transpose(0, 1))


@pytest.mark.parametrize("transposed", [False, True])
def test_released_padding_is_another_function(transposed):
    paper, kernel = up_convolution(6, 4, False, transposed)
    released, _ = up_convolution(6, 4, True, transposed)
    x = torch.randn(1, 6, 5, 7)
    ours, theirs = paper(x), released(x)
    torch.testing.assert_close(ours[:, :, ::2, ::2], theirs[:, :, ::2, ::2])
    assert (ours - theirs)[:, :, 1::2].abs().mean() > 0.1 and (ours - theirs)[..., 1::2].abs().mean() > 0.1
    bottom_right = x.new_zeros(1, 6, 10, 14)
    bottom_right[:, :, 1::2, 1::2] = x
    other = F.conv2d(bottom_right, kernel, padding=2)  # un-pooling to the other corner is not it either
    assert (other - theirs)[..., 2:-2, 2:-2].abs().mean() > 0.1


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("released", [False, True])
def test_up_convolution_of_an_empty_batch_and_in_bfloat16(released, transposed):
    up, _ = up_convolution(6, 4, released, transposed)
    assert up(torch.empty(0, 6, 3, 5)).shape == (0, 4, 6, 10)
    x = torch.randn(2, 6, 3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        low = up(x)
    assert (low.float() - up(x)).abs().max() < 0.1


def test_caffe_layout_of_the_encoder():
    """Strides, the bias and the pooling, by their definition; the names are torchvision's."""
    torch.manual_seed(0)
    encoder = ResNetEncoder(50, caffe=True, mean=0.0, std=1 / 255).eval()
    assert set(encoder.state_dict()) == {"conv1.bias"} | set(ResNetEncoder(50).state_dict())
    strides = {name: m.stride[0] for name, m in encoder.named_modules() if isinstance(m, nn.Conv2d) and m.stride[0] > 1}
    first = {f"layer{n}.0.{part}": 2 for n in (2, 3, 4) for part in ("conv1", "downsample.0")}
    assert strides == {"conv1": 2} | first
    images = torch.rand(1, 3, 36, 52)
    with torch.no_grad():
        encoder.conv1.bias.normal_()
        x = F.conv2d(255 * images, encoder.conv1.weight, encoder.conv1.bias, 2, 3)
        stem = F.relu(encoder.bn1(x))
        padded = F.pad(stem, (0, 1, 0, 1), value=-1.0)
        pooled = F.max_pool2d(padded, 3, 2)
        maps = encoder(images)
        torch.testing.assert_close(maps[0], stem, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(maps[1], encoder.layer1(pooled), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(encoder.last(images), maps[4])


@pytest.mark.parametrize("upsampling", ["upproj", "upconv", "deconv"])
def test_batch_of_one_trains(upsampling):
    torch.manual_seed(0)
    net = FCRN(upsampling, layers=18)
    depth = net(torch.rand(1, 3, 64, 96))
    assert depth.shape == (1, 1, 32, 48) and depth.min() >= 0 and depth.max() > 0
    depth.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())
    assert sum(p.grad.abs().sum() > 0 for p in net.parameters()) > 0.95 * len(list(net.parameters()))


def test_options_of_the_layers():
    torch.manual_seed(0)
    net = FCRN(layers=18, bn_momentum=0.1)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-4, 0.1)}
    assert FCRN(layers=18).transit_norm.momentum == 0.001
    for weight in (net.transit.weight, net.levels[0].conv.weight, net.levels[1].up1.weight, net.levels[1].up2.weight):
        assert abs(weight.std() / 0.1 - 1) < 0.02  # a variance of 0.01, as stated
    assert net.levels[0].up1.bias.abs().max() == 0 and net.head.bias.abs().max() == 0
    assert net.levels[0].up1.weight.is_contiguous() and not net.levels[1].up1.weight.is_contiguous()


def test_dropout_before_the_last_convolution():
    net = FCRN("deconv", layers=18, dropout=0.5)
    seen = []
    net.head.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0] == 0).float().mean().item()))
    images = torch.rand(1, 3, 64, 64)
    net(images)
    net.dropout.eval()
    net(images)
    assert seen[0] > seen[1] + 0.15


@pytest.mark.parametrize("upsampling", ["upproj", "deconv"])
def test_net_can_be_traced_and_exported(upsampling):
    torch.manual_seed(0)
    net = FCRN(upsampling, layers=18, released_padding=upsampling == "upproj", bn_momentum=1.0)
    x = torch.rand(1, 3, 32, 64)
    net(x)  # running statistics
    net.eval()
    with torch.no_grad():
        y = net(x)
        traced, exported = torch.fx.symbolic_trace(net), torch.export.export(net, (x,)).module()
        for graph in (traced, exported):
            torch.testing.assert_close(graph(x), y, rtol=1e-4, atol=1e-4)
        assert traced(x[..., :32]).shape == (1, 1, 16, 16)
        with pytest.raises(ValueError, match="images: expected shape"):
            traced(x[0])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("released", [False, True])
def test_up_convolution_compiles_with_gradients(released, transposed):
    torch._dynamo.reset()
    up, _ = up_convolution(6, 4, released, transposed)
    compiled = torch.compile(up, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 6, 3, 5)
    grads = []
    for run in (up, compiled):
        up.zero_grad()
        run(x).square().sum().backward()
        grads.append([p.grad.clone() for p in up.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


def test_predict():
    net = FCRN("deconv", layers=18, input_size=(64, 96))
    prediction = net.predict(torch.rand(2, 3, 70, 101))
    assert prediction.depth.shape == (2, 1, 70, 101) and (prediction.kind, prediction.unit) == ("metric", "m")
    assert net.predict(torch.rand(3, 70, 101), size=(40, 50)).depth.shape == (1, 1, 70, 101)
    assert net.predict(torch.rand(0, 3, 70, 101)).depth.shape == (0, 1, 70, 101)


def test_ground_truth_is_the_nearest_pixel():
    depth = torch.rand(2, 1, 228, 304)
    target = FCRN("deconv", layers=18).ground_truth(depth, (128, 160))
    assert target.shape == (2, 1, 128, 160)
    rows = ((torch.arange(128) + 0.5) * 228 / 128).long()
    columns = ((torch.arange(160) + 0.5) * 304 / 160).long()
    assert torch.equal(target, depth[:, :, rows][..., columns])


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.rand(1, 3, 31, 64), ValueError, "height and width of at least 32, got 31x64"),
        (torch.rand(1, 4, 64, 64), ValueError, r"got \(1, 4, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError, "divide by 255"),
    ],
)
def test_bad_images(images, error, message):
    with pytest.raises(error, match=f"images: .*{message}"):
        FCRN("deconv", layers=18)(images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"upsampling": "shuffle"}, r"upsampling: expected one of \('upproj', 'upconv', 'deconv'\), got 'shuffle'"),
        ({"upsampling": "deconv", "released_padding": True}, "released_padding: expected False"),
        ({"layers": 20}, "layers: .*got 20"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        FCRN(**({"layers": 18} | options))


def test_imagenet_initialisation(tmp_path):
    torch.manual_seed(0)
    source = ResNetEncoder(18)
    source.bn1.running_mean.normal_()
    classifier = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save(source.state_dict() | classifier, tmp_path / "resnet18.pth")
    net = FCRN("deconv", layers=18, encoder_weights=tmp_path / "resnet18.pth")
    state = net.encoder.state_dict()
    for key, value in source.state_dict().items():
        assert key == "conv1.weight" or torch.equal(state[key], value), key
    images = torch.rand(1, 3, 40, 56)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (images - mean[:, None, None]) / std[:, None, None]
    expected = F.conv2d(normalised, source.conv1.weight, stride=2, padding=3)
    actual = net.encoder.conv1(255 * images)
    inside = (..., slice(2, -2), slice(2, -2))  # the zero padding is black here and the mean colour there
    torch.testing.assert_close(actual[inside], expected[inside], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"resnet18\.pth: does not fit"):
        FCRN("deconv", layers=34, encoder_weights=tmp_path / "resnet18.pth")


# The released TensorFlow weights: {layer: {variable: array}}.


def release_of(generator):
    """Random weights under the names and in the layout of the release, with nothing taken from the package."""
    content = {}

    def conv(name, kernel, inputs, outputs, bias=False):
        shape = (*kernel, inputs, outputs)
        content[name] = {"weights": generator.standard_normal(shape, np.float32)}
        content[name]["weights"] *= np.float32((2 / np.prod(shape[:3])) ** 0.5)
        if bias:
            content[name]["biases"] = generator.uniform(-0.1, 0.1, outputs).astype(np.float32)

    def norm(name, channels):
        content[name] = {
            "scale": generator.uniform(0.5, 1, channels).astype(np.float32),
            "offset": generator.uniform(-0.1, 0.1, channels).astype(np.float32),
            "mean": generator.uniform(-0.1, 0.1, channels).astype(np.float32),
            "variance": generator.uniform(0.5, 1.5, channels).astype(np.float32),
        }

    conv("conv1", (7, 7), 3, 64, bias=True)
    content["conv1"]["weights"] /= 128
    norm("bn_conv1", 64)
    inputs = 64
    for stage, blocks, width in ((2, "abc", 64), (3, "abcd", 128), (4, "abcdef", 256), (5, "abc", 512)):
        for block in blocks:
            if block == "a":
                conv(f"res{stage}a_branch1", (1, 1), inputs, 4 * width)
                norm(f"bn{stage}a_branch1", 4 * width)
            for letter, kernel, i, o in (("a", 1, inputs, width), ("b", 3, width, width), ("c", 1, width, 4 * width)):
                conv(f"res{stage}{block}_branch2{letter}", (kernel, kernel), i, o)
                norm(f"bn{stage}{block}_branch2{letter}", o)
            inputs = 4 * width
    conv("layer1", (1, 1), 2048, 1024, bias=True)
    norm("layer1_BN", 1024)
    width = 1024
    for scale in ("2x", "4x", "8x", "16x"):
        for branch in (1, 2):
            for letter, kernel in (("A", (3, 3)), ("B", (2, 3)), ("C", (3, 2)), ("D", (2, 2))):
                conv(f"layer{scale}_br{branch}_Conv{letter}", kernel, width, width // 2, bias=True)
            norm(f"layer{scale}_br{branch}_BN", width // 2)
        conv(f"layer{scale}_Conv", (3, 3), width // 2, width // 2, bias=True)
        norm(f"layer{scale}_BN", width // 2)
        width //= 2
    conv("ConvPred", (3, 3), 64, 1, bias=True)
    content["ConvPred"]["biases"] += 2
    return content


def released_network(content, images):
    """The TensorFlow graph, from its description and the arrays alone."""

    def conv(x, name, stride=1, padding=0):
        kernel = torch.from_numpy(content[name]["weights"]).permute(3, 2, 0, 1)
        bias = content[name].get("biases")
        return F.conv2d(x, kernel, None if bias is None else torch.from_numpy(bias), stride, padding)

    def norm(x, name):
        mean, var, scale, shift = (torch.from_numpy(content[name][k]) for k in ("mean", "variance", "scale", "offset"))
        return F.batch_norm(x, mean, var, scale, shift, eps=1e-4)

    x = F.relu(norm(conv(255 * images, "conv1", 2, 3), "bn_conv1"))
    x = F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), 3, 2)
    for stage, blocks in ((2, "abc"), (3, "abcd"), (4, "abcdef"), (5, "abc")):
        for block in blocks:
            stride = 2 if block == "a" and stage > 2 else 1
            name = f"{stage}{block}_branch"
            y = F.relu(norm(conv(x, f"res{name}2a", stride), f"bn{name}2a"))
            y = F.relu(norm(conv(y, f"res{name}2b", 1, 1), f"bn{name}2b"))
            y = norm(conv(y, f"res{name}2c"), f"bn{name}2c")
            x = F.relu(y + (norm(conv(x, f"res{name}1", stride), f"bn{name}1") if block == "a" else x))
    x = norm(conv(x, "layer1"), "layer1_BN")
    for scale in ("2x", "4x", "8x", "16x"):
        branches = []
        for branch in (1, 2):
            name = f"layer{scale}_br{branch}"
            kernels = {k: torch.from_numpy(content[f"{name}_Conv{k}"]["weights"]).permute(3, 2, 0, 1) for k in FAST}
            biases = {k: torch.from_numpy(content[f"{name}_Conv{k}"]["biases"]) for k in FAST}
            branches.append(norm(interleave(x, kernels, biases, released=True), f"{name}_BN"))
        y = norm(conv(F.relu(branches[0]), f"layer{scale}_Conv", 1, 1), f"layer{scale}_BN")
        x = F.relu(y + branches[1])
    return F.relu(conv(x, "ConvPred", 1, 1))


def test_released_weights(tmp_path):
    content = release_of(np.random.default_rng(0))
    np.save(tmp_path / "NYU_ResNet-UpProj.npy", content, allow_pickle=True)
    with torch.device("meta"):
        net = create_model("fcrn_resnet50_upproj", released_padding=True)
    net.to_empty(device="cpu").eval()
    load_checkpoint(net, tmp_path / "NYU_ResNet-UpProj.npy")
    images = torch.rand(1, 3, 36, 52)
    with torch.no_grad():
        depth, expected = net(images), released_network(content, images)
    assert expected.shape == (1, 1, 32, 32) and expected.std() > 0.1
    assert (depth - expected).abs().max() < 1e-3 * expected.max()


@pytest.fixture(scope="module")
def tiny():
    return FCRN(layers=18, released_padding=True)


@pytest.mark.parametrize("options", [{}, {"upsampling": "upconv", "released_padding": True}, {"upsampling": "deconv"}])
def test_released_weights_are_refused_by_another_network(tmp_path, options):
    net = FCRN(layers=18, **options)
    np.save(tmp_path / "w.npy", {"ConvPred": {"biases": np.ones(1)}}, allow_pickle=True)
    with pytest.raises(ValueError, match=r'released weights are for upsampling="upproj" with released_padding=True'):
        load_checkpoint(net, tmp_path / "w.npy")


def test_released_weights_that_do_not_fit_change_nothing(tiny, tmp_path):
    before = {key: value.clone() for key, value in tiny.state_dict().items()}
    kernels = {f"layer2x_br1_Conv{k}": {"weights": np.ones((2, 2, 256, 128)), "biases": np.ones(128)} for k in FAST}
    head = {"biases": np.ones(1)}
    for content, message in (
        ({"ConvPred": head}, r"keys missing \("),
        ({"ConvPred": head, "other": {"weights": np.ones(3)}}, r"1 keys unexpected \(other\.weights\)"),
        ({"ConvPred": head, "extra": np.ones(3)}, r"1 keys unexpected \(extra\)"),
        ({"ConvPred": {"weights": np.ones((3, 3, 8, 1))}}, r"head\.weight: expected shape \(1, 16, 3, 3\), got \(1, 8"),
        ({"ConvPred": {}} | kernels, r"8 keys unexpected \(layer2x_br1_ConvA\.biases, "),
    ):
        np.save(tmp_path / "w.npy", content, allow_pickle=True)
        with pytest.raises(ValueError, match=rf"w\.npy: does not fit the model: .*{message}"):
            load_checkpoint(tiny, tmp_path / "w.npy")
    assert all(torch.equal(value, before[key]) for key, value in tiny.state_dict().items())


def test_weights_remember_their_padding(tiny, tmp_path):
    torch.save(tiny.state_dict(), tmp_path / "own.pt")
    same, other = FCRN(layers=18, released_padding=True), FCRN(layers=18)
    load_checkpoint(same, tmp_path / "own.pt")
    assert torch.equal(same.levels[2].up1.weight, tiny.levels[2].up1.weight)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(ValueError, match="released_padding: the weights were made with True, the network has False"):
        load_checkpoint(other, tmp_path / "own.pt")
    with pytest.raises(ValueError, match="create it with released_padding=False"):
        same.load_state_dict(other.state_dict())
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


@pytest.mark.parametrize("size", [(9, 12), (8, 11), (7, 7)])
def test_the_released_pooling_pads_as_tensorflow(size):
    """SAME: ceil(n / 2) windows, and what these lack is padded, half of it (rounded down) in front."""
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    expected = x
    for dim, length in ((-2, size[0]), (-1, size[1])):
        count = -(-length // 2)
        front = max((count - 1) * 2 + 3 - length, 0) // 2
        windows = [range(max(2 * k - front, 0), min(2 * k - front + 3, length)) for k in range(count)]
        expected = torch.stack([expected.index_select(dim, torch.tensor([*w])).amax(dim) for w in windows], dim)
    assert torch.equal(ResNetEncoder(18, caffe="same")._pool(x), expected)
