"""Which channels belong together, what a network costs, and the network with fewer of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mdepth_fast.models.resize import resize_to
from mdepth_fast.netadapt import ChannelGraph


def separable(inputs, outputs, stride=1):
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU6(inplace=True),
        nn.Conv2d(inputs, outputs, 1),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    )


class Net(nn.Module):
    """A skip by addition, one by concatenation, a transposed convolution, a linear layer after flattening."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.down, self.deep = separable(16, 32, 2), separable(32, 24)
        self.narrow = nn.Conv2d(24, 16, 1)
        self.up = nn.ConvTranspose2d(16 + 32, 40, 2, 2)
        self.head = nn.Conv2d(40 + 24, 1, 1)
        self.inner, self.outer = nn.Linear(32 * 16, 8), nn.Linear(8, 1)

    def forward(self, x):
        if x.shape[1] != 3:  # tracers that know no shapes stop here
            raise ValueError("x: expected 3 channels")
        stem = self.stem((x - 0.5) * 2)
        down = self.down(stem)
        deep = self.deep(down)
        joined = F.interpolate(F.relu(self.narrow(deep)), scale_factor=2, mode="nearest") + stem
        up = self.up(torch.cat([joined, F.interpolate(down, scale_factor=2, mode="bilinear")], 1))
        flat = F.relu(self.inner(F.adaptive_avg_pool2d(down, 4).flatten(1)))
        return self.head(torch.cat([up, F.interpolate(deep, scale_factor=4)], 1)) + self.outer(flat)[:, :, None, None]


def lively(net):
    """Statistics and scales as of a trained network."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
    return net.eval()


@pytest.fixture
def net():
    return lively(Net())


EXAMPLE = torch.rand(2, 3, 32, 32)


def test_groups_follow_the_channels(net):
    graph = ChannelGraph(net, EXAMPLE)
    groups = {graph.groups[n].name: graph.groups[n] for n in graph.prunable}
    assert {name: group.size for name, group in groups.items()} == {
        "stem": 16, "down.3": 32, "deep.3": 24, "up": 40, "inner": 8
    }  # fmt: skip
    assert groups["stem"].makers == [("stem.weight", 0), ("narrow.weight", 0)]  # added up: one choice for both
    assert graph.number("narrow") == graph.number("stem")
    with pytest.raises(ValueError, match=r"^name: no layer makes channels under the name 'nothing'"):
        graph.number("nothing")


def test_cost_is_that_of_the_network(net):
    graph = ChannelGraph(net, EXAMPLE)
    with FlopCounterMode(display=False) as counter:
        net(EXAMPLE)
    assert graph.macs(graph.sizes) * 2 == counter.get_total_flops()
    assert graph.weights(graph.sizes) == sum(p.numel() for p in net.parameters() if p.dim() > 1)


@pytest.mark.parametrize("layer", ["stem", "down.3", "deep.3", "up", "inner"])
def test_channels_that_carry_nothing_can_go(net, layer):
    """Filters of zero, which norms rank last: without them the network computes the same, and costs what was said."""
    graph = ChannelGraph(net, EXAMPLE)
    number = graph.number(layer)
    group = graph.groups[number]
    dead = torch.randperm(group.size)[: group.size // 2]
    state = net.state_dict()
    with torch.no_grad():
        for name, dimension in group.makers:
            state[name].transpose(0, dimension)[dead] = 0
            state[name.replace("weight", "bias")][dead] = 0
        if layer in ("down.3", "deep.3"):  # a batch norm behind would make something of nothing
            norm = layer.replace("3", "4")
            for part in ("bias", "running_mean"):
                state[f"{norm}.{part}"][dead] = 0
        if layer == "stem":  # its own batch norms, of the depthwise convolution, see a constant
            for part in ("bias", "running_mean"):
                state[f"down.1.{part}"][dead] = 0
        if layer == "down.3":
            for part in ("bias", "running_mean"):
                state[f"deep.1.{part}"][dead] = 0
    kept = graph.keep_largest(net, number, group.size - len(dead))
    assert not set(kept.tolist()) & set(dead.tolist())
    smaller = graph.shrink(net, {number: kept})
    torch.testing.assert_close(smaller(EXAMPLE), net(EXAMPLE), rtol=1e-4, atol=1e-5)

    again = ChannelGraph(smaller, EXAMPLE)
    sizes = {**graph.sizes, number: len(kept)}
    assert again.macs(again.sizes) == graph.macs(sizes) < graph.macs(graph.sizes)
    assert (
        again.weights(again.sizes)
        == graph.weights(sizes)
        == sum(p.numel() for p in smaller.parameters() if p.dim() > 1)
    )
    for module in smaller.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.weight) == len(module.running_var)
            assert not isinstance(module.running_mean, nn.Parameter)
    rebuilt = resize_to(lively(Net()), smaller.state_dict())
    assert torch.equal(rebuilt(EXAMPLE), smaller(EXAMPLE)) and repr(rebuilt) == repr(smaller)
    smaller.train()(EXAMPLE).sum().backward()
    assert all(p.grad is not None for p in smaller.parameters())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_smaller_network_keeps_its_layout(net, layout):
    net.to(memory_format=layout)
    graph = ChannelGraph(net, EXAMPLE)
    smaller = graph.shrink(net, {number: torch.arange(8) for number in graph.prunable})
    rebuilt = resize_to(lively(Net()).to(memory_format=layout), smaller.state_dict())
    for model in (smaller, rebuilt):
        weights = [value for value in model.parameters() if value.dim() == 4]
        assert all(weight.is_contiguous(memory_format=layout) for weight in weights)


def test_layers_that_are_added_up_choose_together(net):
    graph = ChannelGraph(net, EXAMPLE)
    number = graph.number("stem")
    with torch.no_grad():
        net.stem.weight[:] = 1.0
        net.stem.weight[3] = 0.0  # the weakest here,
        net.narrow.weight[3] = 100.0  # but the strongest there
    assert 3 in graph.keep_largest(net, number, 8).tolist()


class Odd(nn.Module):
    """What cannot be followed: a grouped convolution, a shared weight, a broadcast, a shuffle."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.c, self.d = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 8, 1)
        self.e, self.f = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 1, 1)

    def forward(self, x):
        x = self.b(self.a(x))
        x = self.c(self.c(x))
        x = F.pixel_shuffle(self.d(x), 2)
        return self.f(self.e(x) * self.e(x).mean((2, 3), keepdim=True))


def test_what_cannot_be_followed_stays_as_it_is():
    net = Odd().eval()
    graph = ChannelGraph(net, torch.rand(1, 3, 8, 8))
    assert all(graph.groups[graph.number(layer)].fixed for layer in ("a", "d", "f"))
    number = graph.number("a")
    with pytest.raises(ValueError, match=r"^kept: the channels of a are fixed"):
        graph.shrink(net, {number: torch.arange(8)})
    for number in graph.prunable:
        kept = graph.keep_largest(net, number, graph.groups[number].size // 2)
        assert graph.shrink(net, {number: kept})(torch.rand(1, 3, 8, 8)).shape == (1, 1, 16, 16)


def test_errors(net):
    graph = ChannelGraph(net, EXAMPLE)
    number = graph.number("up")
    with pytest.raises(ValueError, match=r"^count: expected 1 to 40 channels, got 41"):
        graph.keep_largest(net, number, 41)
    with pytest.raises(ValueError, match=r"^kept: expected indices from 0 to 39 of up"):
        graph.shrink(net, {number: torch.tensor([0, 40])})
    with pytest.raises(ValueError, match=r"^state: expected the keys of Net, they differ in stem.bias"):
        resize_to(net, {k: v for k, v in net.state_dict().items() if k != "stem.bias"})
    with pytest.raises(ValueError, match=r"^model: torch.export cannot capture Net"):
        ChannelGraph(net, torch.rand(1, 2, 32, 32))
