"""DORN against its prototxt in plain functions, its thresholds, windows, decoding, freezing and released blobs."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from released_blobs import released_blobs

from mdepth_fast.models import DORN, create_model, load_checkpoint, sid_thresholds, ud_thresholds
from mdepth_fast.ops import ordinal_decode

SMALL = {"width": 2, "window": (49, 65), "K": 5, "alpha": 1.0, "beta": 10.0}


def meta(name, **options):
    with torch.device("meta"):
        return create_model(name, **options)


def count(module):
    return sum(p.numel() for p in module.parameters())


def plain(content, images, style, pool, rates):
    """The prototxt, layer by layer, in float64."""
    b = {key: torch.from_numpy(value).double() for key, value in content.items()}

    def conv(name, x, stride=1, dilation=1, relu=True):
        weight = b[f"{name}/0"]
        x = F.conv2d(x, weight, b.get(f"{name}/1"), stride, dilation * (weight.shape[-1] // 2), dilation)
        if f"{name}/bn/0" in b:
            slope, bias, mean, variance = (b[f"{name}/bn/{n}"] for n in range(4))
            x = slope * (x - mean) / (variance + 1e-5).sqrt() + bias
        return x.clamp(min=0) if relu else x

    mean = torch.tensor([103.0626, 115.9029, 123.1516], dtype=torch.float64).view(1, 3, 1, 1)
    x = 255 * images.double()[:, [2, 1, 0]] - mean
    x = conv("conv1_3_3x3", conv("conv1_2_3x3", conv("conv1_1_3x3_s2", x, stride=2)))
    x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
    for stage, repeats in ((2, 3), (3, 4), (4, 23), (5, 3)):
        dilation = {4: 2, 5: 4}.get(stage, 1)
        for block in range(1, repeats + 1):
            base, stride = f"conv{stage}_{block}", 2 if (stage, block) == (3, 1) else 1
            y = conv(f"{base}_3x3", conv(f"{base}_1x1_reduce", x), stride, dilation)
            y = conv(f"{base}_1x1_increase", y, relu=False)
            x = (y + (conv(f"{base}_1x1_proj", x, stride, relu=False) if block == 1 else x)).clamp(min=0)
    height, width = x.shape[-2:]
    rows, columns = math.ceil((height - pool) / pool) + 1, math.ceil((width - pool) / pool) + 1
    cells = [
        x[:, :, pool * r : pool * r + pool, pool * c : pool * c + pool].mean((2, 3))
        for r in range(rows)
        for c in range(columns)
    ]
    kitti = style == "kitti"
    fc = "global_fc" if kitti else "ip1/depth"
    whole = torch.stack(cells, 2).flatten(1) @ b[f"{fc}/0"].T + b[f"{fc}/1"]
    six = "depth/conv6_{}" if kitti else "conv6_{}/soft"
    parts = [conv(six.format(1), whole.clamp(min=0)[:, :, None, None]).expand(-1, -1, height, width)]
    for n, rate in enumerate((1, *rates), 1):
        parts.append(conv(six.format(n + 1), conv(f"aspp_{n}" if kitti else f"aspp_{n}/soft", x, dilation=rate)))
    y = conv("conv8", conv("conv7" if kitti else "conv7/soft", torch.cat(parts, 1)), relu=False)
    return F.interpolate(y, images.shape[-2:], mode="bilinear", align_corners=True)


def test_parameter_counts():
    kitti, nyu = meta("dorn_resnet101_kitti"), meta("dorn_resnet101_nyu")
    assert count(kitti) == 99_807_310 and count(nyu) == 110_280_776
    assert count(kitti.encoder) == count(nyu.encoder) == 42_623_936
    assert count(meta("dorn_resnet101_kitti", K=80)) == 99_844_192
    assert count(meta("dorn_resnet101_nyu", K=80)) == 110_329_952
    assert count(kitti.scene.fc) == 20_972_032 and count(nyu.scene.fc) == 31_457_792
    assert count(kitti.scene.merge) == 5_244_928 and count(kitti.scene.classify) == 290_958


@pytest.mark.parametrize(
    ("name", "window", "features", "pooled", "channels"),
    [
        ("dorn_resnet101_kitti", (385, 513), (49, 65), (4, 5), 142),
        ("dorn_resnet101_nyu", (257, 353), (33, 45), (5, 6), 136),
    ],
)
def test_sizes(name, window, features, pooled, channels):
    net = meta(name)
    images = torch.empty(2, 3, *window, device="meta")
    maps = net.encoder(images)
    assert maps.shape == (2, 2048, *features)
    assert net.scene.pool(maps).shape == (2, 2048, *pooled)
    assert net(images).shape == (2, channels, *window)
    assert net.input_size == net.window == window


@pytest.mark.parametrize(("style", "pool", "rates"), [("kitti", 16, (6, 12, 18)), ("nyu", 4, (4, 8, 12))])
def test_released_blobs_give_what_the_prototxt_computes(tmp_path, style, pool, rates):
    pooled = math.ceil(7 / pool) * math.ceil(9 / pool)
    content = released_blobs(style, pooled=pooled)
    np.savez(tmp_path / "blobs.npz", **content)
    net = DORN(**SMALL, pool=pool, rates=rates, decode="released").double().eval()
    load_checkpoint(net, tmp_path / "blobs.npz")
    images = torch.rand(2, 3, 49, 65)
    expected = plain(content, images, style, pool, rates)
    assert expected.std() > 1e-3
    # The mean colour is a float32 of the net, an exact number here.
    assert (net(images.double()) - expected).abs().max() < 1e-7 * expected.abs().max()


def test_a_blob_too_many_or_too_few_is_named(tmp_path):
    content = released_blobs("kitti")
    del content["depth/conv6_3/1"]
    np.savez(tmp_path / "blobs.npz", **content, **{"fc1000/0": np.zeros((2, 2))})
    with pytest.raises(ValueError, match=r"1 keys missing \(scene\.aspp\.1\.2\.bias\); 1 keys unexpected \(fc1000/0\)"):
        load_checkpoint(DORN(**SMALL), tmp_path / "blobs.npz")


def test_released_blobs_want_the_released_decoding(tmp_path):
    np.savez(tmp_path / "blobs.npz", **released_blobs("kitti"))
    with pytest.warns(UserWarning, match=r"blobs\.npz: these weights are meant for decode='released'.* 'midpoint'"):
        load_checkpoint(DORN(**SMALL), tmp_path / "blobs.npz")


def test_released_thresholds():
    kitti, nyu = meta("dorn_resnet101_kitti").thresholds, meta("dorn_resnet101_nyu").thresholds
    assert len(kitti) == 72 and len(nyu) == 69
    for k in range(72):
        assert kitti[k].item() == pytest.approx(math.exp((k + 40) / 25), rel=1e-13)
    for k in range(69):
        assert nyu[k].item() == pytest.approx(math.exp(k / 25 - 0.36), rel=1e-13)
    assert [round(t, 3) for t in (kitti[0].item(), kitti[-1].item(), nyu[-1].item())] == [4.953, 84.775, 10.591]
    assert round(nyu[0].item(), 4) == 0.6977


def test_spacings():
    t = sid_thresholds(0.5, 80.0, 40)
    assert t.dtype == torch.float64 and t[0].item() == pytest.approx(0.5) and t[-1].item() == pytest.approx(80)
    torch.testing.assert_close(t[1:] / t[:-1], torch.full((40,), 160 ** (1 / 40), dtype=torch.float64))
    # The paper discretises [1, beta + xi] and takes xi off what it decodes.
    alpha, beta, bins, xi = 0.001, 80.0, 80, 0.999
    shifted = torch.tensor([(beta + xi) ** (i / bins) - xi for i in range(bins + 1)], dtype=torch.float64)
    torch.testing.assert_close(sid_thresholds(alpha, beta, bins, xi), shifted)
    torch.testing.assert_close(ud_thresholds(0.0, 10.0, 4), torch.tensor([0, 2.5, 5, 7.5, 10], dtype=torch.float64))
    options = {"alpha": 1.0, "beta": 9.0, "K": 4, "width": 1, "window": (17, 17)}
    torch.testing.assert_close(DORN(**options, spacing="ud").thresholds, ud_thresholds(1.0, 9.0, 4))
    torch.testing.assert_close(DORN(**options, xi=2.0).thresholds, sid_thresholds(1.0, 9.0, 4, 2.0))
    assert DORN(width=1, window=(17, 17), thresholds=[1, 2, 4, 7]).K == 3


@pytest.mark.parametrize("name", ["dorn_resnet101_kitti", "dorn_resnet101_nyu"])
@pytest.mark.parametrize("decode", ["midpoint", "released"])
def test_every_label_decodes_to_its_depth(name, decode):
    net = meta(name, decode=decode)
    t = [math.exp((k + 40) / 25) if "kitti" in name else math.exp(k / 25 - 0.36) for k in range(-1, net.K + 1)]
    got = net._to_metres(torch.arange(net.K + 1.0).view(1, 1, 1, -1)).flatten()
    for n in range(net.K + 1):
        bin_ = min(n, net.K - 1)
        expected = t[n] if decode == "released" else (t[bin_ + 1] + t[bin_ + 2]) / 2
        assert got[n].item() == pytest.approx(expected, rel=1e-6)
    if decode == "midpoint":
        # Depth to label to depth is off by half a bin at most, 2 % at the released spacing.
        depth = torch.linspace(net.thresholds[0] + 1e-4, net.thresholds[-1] - 1e-4, 5000)
        label = torch.bucketize(depth, net.thresholds[1:-1].float(), right=True)
        back = net._to_metres(label.float().view(1, 1, 1, -1)).flatten()
        assert ((back - depth).abs() / depth).max() <= (math.exp(0.04) - 1) / 2 + 1e-6


def test_half_labels_lie_between_on_the_logarithmic_scale():
    net = meta("dorn_resnet101_kitti", decode="released")
    got = net._to_metres(torch.tensor([0.5, 30.5, 70.75]).view(1, 1, 1, 3)).flatten().tolist()
    assert got == pytest.approx([math.exp((n - 1 + 40) / 25) for n in (0.5, 30.5, 70.75)], rel=1e-6)


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_inference_is_the_decoding_of_the_logits(batch):
    net = DORN(**SMALL).eval()
    images = torch.rand(batch, 3, 49, 65)
    with torch.no_grad():
        depth, label = ordinal_decode(net(images), net.thresholds.float())
        got = net.infer(images)
    assert got.shape == (batch, 1, 49, 65)
    torch.testing.assert_close(got, depth)
    assert batch == 0 or len(label.unique()) > 1


def test_nan_is_not_lost():
    net = DORN(**SMALL).eval()
    small = torch.randn(1, 10, 7, 9)
    small[0, 3, 2, 4] = torch.nan
    counts = net._counts(small)
    bad = F.interpolate(small, (49, 65), mode="bilinear", align_corners=True).isnan().any(1, keepdim=True)
    assert torch.equal(counts.isnan(), bad) and torch.equal(net._to_metres(counts).isnan(), bad) and bad.any()


def test_windows_of_a_kitti_frame(monkeypatch):
    net = DORN(width=1, K=2, alpha=1.0, beta=4.0)
    seen = []

    def logits(images):
        seen.extend(round(1241 * x.item()) for x in images[:, 0, 0, 0])
        return torch.zeros(len(images), 4, 49, 65)

    monkeypatch.setattr(net, "_logits", logits)
    assert net.network_size(375, 1242) == (385, 1242) and net.network_size(100, 300) == (385, 513)
    frame = torch.linspace(0, 1, 1242).expand(1, 3, 375, 1242)
    assert net.predict(frame).depth.shape == (1, 1, 375, 1242)
    assert seen == [0, 256, 512, 1242 - 513]
    for length, starts in ((513, [0]), (600, [0, 87]), (769, [0, 256])):
        seen.clear()
        net.predict(torch.linspace(0, (length - 1) / 1241, length).expand(1, 3, 385, length))
        assert seen == starts


@pytest.mark.parametrize("decode", ["midpoint", "released"])
def test_labels_of_overlapping_windows_are_averaged(monkeypatch, decode):
    """Two images, six windows each, a label of its own for each window."""
    width, length, bins = 33, 100, 12
    net = DORN(width=1, window=(17, width), K=bins, alpha=1.0, beta=20.0, decode=decode)
    starts = [0, 16, 32, 48, 64, 67]
    labels = torch.randint(0, bins + 1, (len(starts), 2))

    def logits(windows):
        assert len(windows) == 2 * len(starts)
        beyond = (torch.arange(bins) < labels.flatten()[:, None]).float()
        pairs = torch.stack([1 - beyond, beyond], 2).flatten(1)
        return pairs[:, :, None, None].expand(-1, -1, 3, 5)

    monkeypatch.setattr(net, "_logits", logits)
    got = net.infer(torch.rand(2, 3, 17, length))
    assert got.shape == (2, 1, 17, length)
    for image in range(2):
        for x in range(length):
            votes = [labels[n, image].item() for n, start in enumerate(starts) if start <= x < start + width]
            expected = net._to_metres(torch.tensor(sum(votes) / len(votes)).view(1, 1, 1, 1)).item()
            assert got[image, 0, :, x].tolist() == pytest.approx([expected] * 17, rel=1e-5)


def test_prediction():
    net = DORN(**SMALL)
    prediction = net.predict(torch.rand(2, 3, 60, 130))
    assert prediction.depth.shape == (2, 1, 60, 130) and (prediction.kind, prediction.unit) == ("metric", "m")
    assert prediction.depth.min() > 1 and prediction.depth.max() < 10
    whole = DORN(**SMALL, sliding=False)
    assert whole.network_size(480, 640) == (49, 65)
    assert whole.predict(torch.rand(3, 60, 130)).depth.shape == (1, 1, 60, 130)
    assert meta("dorn_resnet101_nyu").network_size(480, 640) == (257, 353)


def test_published_freezing():
    net = DORN(**SMALL).train()
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    norms = {name for name, module in net.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    assert norms and all(not net.get_submodule(name).training for name in norms)
    stem = {name for name, _ in net.named_parameters() if name.startswith(("encoder.conv", "encoder.layer1."))}
    assert frozen == stem | {f"{name}.{part}" for name in norms for part in ("weight", "bias")}
    assert net.scene.dropout.training
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net(torch.rand(1, 3, 49, 65)).square().mean().backward()
    assert all((parameter.grad is None) == (name in frozen) for name, parameter in net.named_parameters())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    free = DORN(**SMALL, freeze_norm=False, freeze_stem=False).train()
    assert all(parameter.requires_grad for parameter in free.parameters())
    assert all(module.training for module in free.modules())


@pytest.mark.parametrize(("name", "fc"), [("dorn_resnet101_kitti", 10), ("dorn_resnet101_nyu", 1)])
def test_learning_rates(name, fc):
    net = meta(name)
    groups = net.parameter_groups(1e-4)
    rates = {id(p): round(group["lr"] / 1e-4) for group in groups for p in group["params"]}
    decay = {id(p): group.get("weight_decay") for group in groups for p in group["params"]}
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    assert len(rates) == len(trained) == sum(len(group["params"]) for group in groups)
    for key, parameter in trained.items():
        bias = key.endswith(".bias")
        expected = 1 if key.startswith("encoder.") else (fc if key.startswith("scene.fc.") else 10) * (1 + bias)
        assert rates[id(parameter)] == expected, key
        assert decay[id(parameter)] == (0.0 if bias else None), key


def test_dropout_is_of_single_elements():
    dropout = DORN(**SMALL).train().scene.dropout
    dropped = (dropout(torch.ones(4, 8, 16, 16)) == 0).float().mean((2, 3))
    assert dropped.min() > 0.2 and dropped.max() < 0.8


@pytest.mark.parametrize("pixels", ["rgb", "bgr255"])
def test_imagenet_weights(tmp_path, pixels):
    source = DORN(**SMALL).double().encoder.eval()
    for module in source.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    state = source.state_dict()
    assert {"conv1.weight", "bn3.running_var", "layer1.0.downsample.1.bias", "layer4.2.conv3.weight"} <= set(state)
    file = tmp_path / "resnet101-imagenet.pth"
    torch.save(state | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}, file)
    trunk = DORN(**SMALL, encoder_weights=file, encoder_pixels=pixels).double().encoder.eval()
    if pixels == "bgr255":
        assert all(torch.equal(value.float(), state[key].float()) for key, value in trunk.state_dict().items())
        return
    images = torch.rand(1, 3, 49, 65, dtype=torch.float64)
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
    inputs = []
    with torch.no_grad():
        expected = source.bn1(source.conv1((images - mean) / std))
        trunk.bn1.register_forward_hook(lambda module, _, output: inputs.append(output.clone()))
        trunk(images)
    # The padding stands for the mean colour, which differs a little.
    torch.testing.assert_close(inputs[0][:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": (48, 65)}, r"window: expected height and width of the form 8 n \+ 1, from 17 on, got \(48, 65\)"),
        ({"window": (9, 65)}, r"window: .* got \(9, 65\)"),
        ({"K": 0}, r"K: expected a whole number of bins, at least 1, got 0"),
        ({"alpha": 10.0}, r"alpha, beta: expected 0 <= alpha < beta, got 10.0 and 10.0"),
        ({"alpha": 0.0}, r"xi: expected alpha \+ xi above 0, got alpha 0.0 and xi 0.0"),
        ({"spacing": "log"}, r"spacing: expected one of sid, ud, got 'log'"),
        ({"decode": "mean"}, r"decode: expected one of midpoint, released, got 'mean'"),
        ({"thresholds": [3.0, 2.0, 4.0]}, r"thresholds: expected at least two increasing numbers, got \[3.0, 2.0, 4.0"),
        ({"thresholds": [-1.0, 2.0]}, r"thresholds: expected depths from 0 on, got -1.0 first"),
        ({"layers": 34}, r"layers: expected 50 or 101, got 34"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        DORN(**SMALL | options)


def test_bad_images():
    net, whole = DORN(**SMALL), DORN(**SMALL, sliding=False)
    for call, shape, message in [
        (net, (1, 3, 49, 66), "images: expected the window's height and width, 49x65, got 49x66"),
        (net.infer, (1, 3, 50, 65), "images: expected height and width 49x65 or wider, got 50x65"),
        (net.infer, (1, 3, 49, 64), "images: expected height and width 49x65 or wider, got 49x64"),
        (whole.infer, (1, 3, 49, 66), "images: expected height and width 49x65, got 49x66"),
        (net, (1, 4, 49, 65), r"images: expected shape \(B, 3, H, W\), got \(1, 4, 49, 65\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(torch.rand(shape))
    with pytest.raises(TypeError, match="divide by 255"):
        net(torch.zeros(1, 3, 49, 65, dtype=torch.uint8))
