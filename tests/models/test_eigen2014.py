"""Eigen 2014: published sizes and counts, the forward pass by its definition, stages, geometry, the release's files."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mdepth_fast.models import Eigen2014, create_model, load_checkpoint

SMALL = {"input_size": (72, 100), "fine_rows": 44, "hidden": 8}  # the same net on a smaller image, output 9 x 23


def small(**options):
    torch.manual_seed(0)
    net = Eigen2014(**(SMALL | options))
    for p in net.parameters():  # the published initialisation of the fine stack is all but zero
        torch.nn.init.normal_(p, std=0.05)
    return net


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "coarse", "sizes"),
    [
        (
            "eigen2014_nyu",
            70_757_734,
            {
                "coarse.conv1": (96, 56, 75),
                "coarse.norm": (256, 13, 18),  # the second time; the first is (96, 27, 37)
                "coarse.conv2": (256, 27, 37),
                "coarse.conv3": (384, 13, 18),
                "coarse.conv4": (384, 13, 18),
                "coarse.conv5": (256, 13, 18),
                "coarse.full1": (4096,),
                "coarse.full2": (4070,),
                "fine.conv1": (63, 111, 149),
                "fine.conv2": (64, 55, 74),
                "fine.conv3": (1, 55, 74),
                "": (1, 55, 74),
            },
        ),
        (
            "eigen2014_kitti",
            90_762_362,
            {
                "coarse.conv1": (96, 42, 143),
                "coarse.norm": (256, 9, 35),
                "coarse.conv2": (256, 20, 71),
                "coarse.conv3": (384, 9, 35),
                "coarse.conv4": (384, 9, 35),
                "coarse.conv5": (256, 9, 35),
                "coarse.full1": (4096,),
                "coarse.full2": (3834,),
                "fine.conv1": (63, 55, 285),
                "fine.conv2": (64, 27, 142),
                "fine.conv3": (1, 27, 142),
                "": (1, 27, 142),
            },
        ),
    ],
)
def test_published_counts_and_sizes(name, coarse, sizes):
    with torch.device("meta"):
        net = create_model(name).eval()
    assert count(net.coarse) == coarse
    assert count(net.fine) == 119_437
    assert count(net) == coarse + 119_437
    assert net.coarse.full1.in_features == {"eigen2014_nyu": 256 * 6 * 8, "eigen2014_kitti": 256 * 4 * 17}[name]
    seen = {}
    for module_name, module in net.named_modules():
        module.register_forward_hook(lambda _, __, y, name=module_name: seen.update({name: tuple(y.shape[1:])}))
    net(torch.empty(2, 3, *net.input_size, device="meta"))
    assert seen == seen | sizes
    assert net.output_size == sizes[""][1:]
    assert (net.kind, net.unit) == ("metric", "m")


def test_convolutions_of_the_release():
    with torch.device("meta"):
        net = create_model("eigen2014_nyu")
    layout = {
        name: (m.kernel_size[0], m.stride[0], m.padding)
        for name, m in net.named_modules()
        if isinstance(m, torch.nn.Conv2d)
    }
    assert layout == {
        "coarse.conv1": (11, 4, (2, 2)),
        "coarse.conv2": (5, 1, (2, 2)),
        **{f"coarse.conv{n}": (3, 1, (1, 1)) for n in (3, 4, 5)},
        "fine.conv1": (9, 2, (1, 1)),
        "fine.conv2": (5, 1, (2, 2)),
        "fine.conv3": (5, 1, (2, 2)),
    }


def response_norm(x):
    """cuda-convnet's, by its definition."""
    y = torch.empty_like(x)
    channels = x.shape[1]
    for c in range(channels):
        energy = sum(x[:, k] ** 2 for k in range(max(c - 2, 0), min(c + 3, channels)))
        y[:, c] = x[:, c] / (2 + 1e-4 * energy) ** 0.75
    return y


def by_definition(net, images, stage):
    """Log depth from the weights alone, layer by layer as the paper and the release order them."""
    p = dict(net.named_parameters())

    def conv(x, name, stride, padding):
        return F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], stride, padding)

    x = conv(255 * images - 128, "coarse.conv1", 4, 2)
    x = response_norm(F.relu(F.max_pool2d(x, 3, 2)))
    x = response_norm(F.relu(F.max_pool2d(conv(x, "coarse.conv2", 1, 2), 3, 2)))
    x = F.relu(conv(x, "coarse.conv3", 1, 1))
    x = F.relu(conv(x, "coarse.conv4", 1, 1))
    x = F.relu(F.max_pool2d(conv(x, "coarse.conv5", 1, 1), 3, 2))
    x = (x / 100).reshape(len(images), -1)
    x = F.relu(x @ p["coarse.full1.weight"].T + p["coarse.full1.bias"]) / 2
    coarse = (x @ p["coarse.full2.weight"].T + p["coarse.full2.bias"]).reshape(len(images), 1, *net.output_size)
    if stage == "coarse":
        return 0.45723134 * coarse
    x = (255 * images[:, :, -net.fine_rows :] - 109.31410628) / 76.18328376
    x = F.relu(F.max_pool2d(conv(x, "fine.conv1", 2, 1), 3, 2))
    x = F.relu(conv(torch.cat([coarse, x], 1), "fine.conv2", 1, 2))
    return 0.45723134 * conv(x, "fine.conv3", 1, 2)


@pytest.mark.parametrize("stage", ["coarse", "fine"])
@pytest.mark.parametrize("options", [{}, {"input_size": (76, 64), "fine_rows": None}])
def test_forward_follows_the_definition(stage, options):
    net = small(stage=stage, **options).double().eval()
    images = torch.rand(2, 3, *net.input_size, dtype=torch.float64)
    torch.testing.assert_close(net(images), by_definition(net, images, stage), rtol=1e-9, atol=1e-9)


def test_response_norm_matters_and_is_the_published_one():
    with torch.device("meta"):
        norm = create_model("eigen2014_nyu").coarse.norm
    x = 100 * torch.rand(2, 9, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(norm(x), response_norm(x))
    assert (norm(x) / x).max() < 0.59  # without any response it would be 2 ** -0.75 = 0.595


def test_dropout_zeroes_half_and_scales_nothing_in_training():
    net = small(hidden=64, stage="coarse")
    x = torch.ones(50, 1000)
    y = net.coarse.dropout(x)
    assert set(y.unique().tolist()) == {0.0, 1.0}
    assert 0.48 < y.mean() < 0.52
    assert torch.equal(net.eval().coarse.dropout(x), x / 2)
    images = torch.rand(1, 3, *net.input_size)
    assert torch.equal(net(images), net(images))
    net.train()
    assert not torch.equal(net(images), net(images))


def test_stage_coarse_trains_the_coarse_stack_alone():
    net = small(stage="coarse")
    net(torch.rand(2, 3, *net.input_size)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.coarse.parameters())
    assert all(p.grad is None and not p.requires_grad for p in net.fine.parameters())
    assert net.coarse.dropout.training


def test_stage_fine_leaves_the_coarse_stack_alone():
    net = small()
    assert net.stage == "fine" and net.training and not any(m.training for m in net.coarse.modules())
    images = torch.rand(2, 3, *net.input_size)
    net(images).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.fine.parameters())
    assert all(p.grad is None and not p.requires_grad for p in net.coarse.parameters())
    assert torch.equal(net(images), net(images))  # the frozen stack drops nothing
    net.coarse.requires_grad_(True)
    net(images).square().sum().backward()
    assert all(p.grad is None for p in net.coarse.parameters())


def test_stage_may_change_and_modes_follow():
    net = small()
    net.stage = "coarse"
    assert net.coarse.dropout.training and all(p.requires_grad for p in net.coarse.parameters())
    net.eval()
    net.stage = "fine"
    assert not net.training and not net.fine.training
    assert net.train() is net
    assert net.fine.training and not net.coarse.training
    with pytest.raises(ValueError, match=r"stage: expected one of \('coarse', 'fine'\), got 'both'"):
        net.stage = "both"


def test_stages_share_one_state_dict(tmp_path):
    first, second = small(stage="coarse"), small(stage="fine")
    with torch.no_grad():
        first.coarse.full2.bias.fill_(3.5)
    torch.save(first.state_dict(), tmp_path / "coarse.pt")
    load_checkpoint(second, tmp_path / "coarse.pt")
    assert (second.coarse.full2.bias == 3.5).all()


def test_parameter_groups_are_the_published_ones():
    net = small(stage="coarse")
    groups = {g["name"]: (g["lr"], g["weight_decay"], len(g["params"])) for g in net.parameter_groups()}
    assert groups == {"coarse.conv": (0.001, 5e-4, 10), "coarse.full": (0.1, 1e-4, 4)}
    assert {id(p) for g in net.parameter_groups() for p in g["params"]} == {id(p) for p in net.coarse.parameters()}
    net.stage = "fine"
    groups = {g["name"]: (g["lr"], g["weight_decay"], len(g["params"])) for g in net.parameter_groups()}
    assert groups == {"fine.conv1,3": (0.001, 1e-4, 4), "fine.conv2": (0.01, 1e-4, 2)}
    assert {id(p) for g in net.parameter_groups() for p in g["params"]} == {id(p) for p in net.fine.parameters()}
    optimiser = torch.optim.SGD(net.parameter_groups(), momentum=0.9)
    before = net.fine.conv2.weight.clone()
    net(torch.rand(1, 3, *net.input_size)).square().sum().backward()
    optimiser.step()
    assert not torch.equal(before, net.fine.conv2.weight)


def test_initialisation():
    torch.manual_seed(0)
    net = Eigen2014(**(SMALL | {"hidden": 256}))
    for weight, std in (
        (net.coarse.full1.weight, 0.01),
        (net.coarse.full2.weight, 0.005 / 3**0.5),
        (net.fine.conv1.weight, 0.001),
        (net.fine.conv2.weight, 0.01),
        (net.fine.conv3.weight, 0.01),
    ):
        assert abs(weight.std().item() / std - 1) < 0.06
    assert net.coarse.full2.weight.abs().max() <= 0.005
    assert (net.coarse.full2.bias == net.fine.conv3.bias).all()
    assert net.fine.conv3.bias.item() == pytest.approx(0.82473954 / 0.45723134)
    depth = net.eval()(torch.rand(1, 3, *net.input_size)).exp()
    assert (depth / 2.28).log().abs().max() < 0.1  # the mean log depth of NYU is that of 2.28 m


@pytest.mark.parametrize("name", ["eigen2014_nyu", "eigen2014_kitti"])
def test_ground_truth_takes_every_fourth_pixel_without_the_border(name):
    with torch.device("meta"):
        net = create_model(name)
    height, width = net.input_size
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    depth = torch.stack([rows, columns]).unsqueeze(1)  # a batch of two maps that hold their own coordinates
    target = net.ground_truth(depth, net.output_size)
    assert target.shape == (2, 1, *net.output_size)
    top = height - net.fine_rows
    assert top == {"eigen2014_nyu": 0, "eigen2014_kitti": 56}[name]
    assert target[0, 0, :, 0].tolist() == [top + 4 + 1 + 4 * i for i in range(net.output_size[0])]
    assert target[1, 0, 0, :].tolist() == [4 + 1 + 4 * j for j in range(net.output_size[1])]
    assert target[0].max() < height - 4 and target[1].max() < width - 4
    assert net.ground_truth(depth, net.input_size) is depth
    with pytest.raises(ValueError, match=r"expected depth of \(\d+, \d+\) and size"):
        net.ground_truth(depth[..., 1:], net.output_size)
    with pytest.raises(ValueError, match=r"got .* and \(55, 75\)"):
        net.ground_truth(depth, (55, 75))


class Ramp(Eigen2014):
    """Its depth at every pixel that it predicts is that of the true map."""

    def forward(self, images):
        return self.ground_truth(self.truth, self.output_size).log().expand(len(images), -1, -1, -1)


def test_infer_puts_depth_where_it_belongs():
    net = Ramp(**SMALL)
    height, width = net.input_size
    net.truth = (2 + 0.1 * torch.arange(height)[:, None] + 0.03 * torch.arange(width))[None, None]
    depth = net.infer(torch.rand(2, 3, height, width))
    assert depth.shape == (2, 1, height, width)
    first, last = height - net.fine_rows + 5, height - net.fine_rows + 5 + 4 * (net.output_size[0] - 1)
    right = 5 + 4 * (net.output_size[1] - 1)
    torch.testing.assert_close(
        depth[:1, :, first : last + 1, 5 : right + 1], net.truth[..., first : last + 1, 5 : right + 1]
    )
    assert (depth[:, :, :first] == depth[:, :, first : first + 1]).all()
    assert (depth[..., right + 1 :] == depth[..., right + 1 :][..., :1]).all()
    assert torch.equal(depth[0], depth[1])


def test_predict_resizes_the_whole_image():
    net = small()
    prediction = net.predict(torch.rand(2, 3, 90, 131))
    assert prediction.depth.shape == (2, 1, 90, 131)
    assert (prediction.kind, prediction.unit) == ("metric", "m")
    assert prediction.depth.min() > 0 and net.training
    assert net.predict(torch.rand(0, 3, 90, 131)).depth.shape == (0, 1, 90, 131)
    with pytest.raises(ValueError, match=r"images: expected 72x100, the size of the full layers, got 96x128"):
        net.predict(torch.rand(3, 90, 131), size=(96, 128))


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.rand(1, 3, 240, 320), ValueError, "expected 72x100, the size of the full layers, got 240x320"),
        (torch.rand(1, 3, 100, 72), ValueError, "got 100x72"),
        (torch.rand(3, 72, 100), ValueError, r"expected shape \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 72, 100, dtype=torch.uint8), TypeError, "divide by 255"),
        (None, TypeError, "expected a torch.Tensor, got NoneType"),
    ],
)
def test_bad_images(images, error, message):
    with pytest.raises(error, match=f"images: .*{message}"):
        small()(images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_size": (230, 304)}, "input_size: expected multiples of 4 from 64 on, got 230x304"),
        ({"input_size": (60, 304)}, "input_size: .*got 60x304"),
        ({"fine_rows": 46}, "fine_rows: expected a multiple of 4 from 16 to 72, got 46"),
        ({"fine_rows": 76}, "fine_rows: .*got 76"),
        ({"log_depth_std": 0.0}, "log_depth_std: expected more than 0, got 0.0"),
        ({"stage": 1}, "stage: .*got 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Eigen2014(**(SMALL | options))


# The files of the release: one pickle of two arrays per unit.


@pytest.fixture
def release(tmp_path):
    """Random units in the release's layout, written to a folder, for the net of `SMALL`."""
    generator = np.random.default_rng(0)
    shapes = {
        "imnet_conv1": ((96, 3, 11, 11), 96),
        "imnet_conv2": ((256, 96, 5, 5), 256),
        "imnet_conv3": ((384, 256, 3, 3), 384),
        "imnet_conv4": ((384, 384, 3, 3), 384),
        "imnet_conv5": ((256, 384, 3, 3), 256),
        "full1": ((256 * 2, 8), 8),
        "full2": ((8, 9 * 23), 9 * 23),
        "conv_s2_1": ((64, 3, 9, 9), 64),
        "conv_s2_2": ((64, 64, 5, 5), 64),
        "conv_s2_3": ((64, 1, 5, 5), 1),
    }
    units = {
        unit: (generator.normal(0, 0.03, shape).astype(np.float32), generator.normal(0, 1, n).astype(np.float32))
        for unit, (shape, n) in shapes.items()
    }
    for n, (unit, (weight, bias)) in enumerate(units.items()):
        content = [{"W": weight, "b": bias}, [weight, bias], {"params": (bias, weight)}][n % 3]
        (tmp_path / f"params-{unit}.pk").write_bytes(pickle.dumps(content, 2))
    return tmp_path, units


def test_release_round_trip(release):
    folder, units = release
    net = small(input_size=(64, 100), fine_rows=44).eval()
    assert net.output_size == (9, 23)
    load_checkpoint(net, folder)
    units = {name: [torch.from_numpy(array) for array in arrays] for name, arrays in units.items()}
    for n in range(1, 6):
        assert torch.equal(getattr(net.coarse, f"conv{n}").weight, units[f"imnet_conv{n}"][0])
    images = torch.rand(2, 3, 64, 100)
    features = []
    net.coarse.full1.register_forward_hook(lambda _, inputs, __: features.append(inputs[0]))
    depth = net(images)
    hidden = F.relu(features[0] @ units["full1"][0] + units["full1"][1]) / 2
    coarse = (hidden @ units["full2"][0] + units["full2"][1]).unflatten(1, (1, 9, 23))
    x = (255 * images[:, :, -44:] - 109.31410628) / 76.18328376
    x = F.relu(F.max_pool2d(F.conv2d(x, *units["conv_s2_1"], stride=2, padding=1), 3, 2))
    x[:, :1] = coarse  # the map displaces the first of 64 filters
    x = F.relu(F.conv2d(x, *units["conv_s2_2"], padding=2))
    x = F.conv_transpose2d(x, units["conv_s2_3"][0], units["conv_s2_3"][1], padding=2)
    torch.testing.assert_close(depth, 0.45723134 * x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("unit", "content", "message"),
    [
        ("full1", {"W": np.zeros((512, 9)), "b": np.zeros(9)}, r"two arrays, of shapes \(8, 512\) and \(8,\), got"),
        ("conv_s2_3", {"W": np.zeros((64, 1, 5, 5))}, r"\(64, 1, 5, 5\) and \(1,\), got \(64, 1, 5, 5\)"),
        ("conv_s2_1", {"W": np.zeros((63, 3, 9, 9)), "b": np.zeros(63)}, r"\(64, 3, 9, 9\) and \(64,\)"),
        ("imnet_conv3", {"W": np.zeros((384, 256, 3, 3)), "b": np.zeros(384), "v": np.zeros(384)}, "two arrays"),
        ("imnet_conv3", [], "got none"),
    ],
)
def test_units_that_do_not_fit_change_nothing(release, unit, content, message):
    folder, _ = release
    (folder / f"params-{unit}.pk").write_bytes(pickle.dumps(content, 2))
    net = small(input_size=(64, 100), fine_rows=44)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=rf"params-{unit}\.pk: .*{message}"):
        load_checkpoint(net, folder)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_release_with_a_missing_unit(release):
    folder, _ = release
    (folder / "params-full2.pk").unlink()
    with pytest.raises(FileNotFoundError, match=r"params-full2\.pk: no such checkpoint file"):
        load_checkpoint(small(input_size=(64, 100), fine_rows=44), folder)
