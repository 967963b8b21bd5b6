"""FlowNetS: sizes, TensorFlow's padding, `predict`, published names."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mdepth_fast.models import FlowModel, FlowPrediction, create_model
from mdepth_fast.models.flownet import FlowNetS


@pytest.mark.parametrize(("output", "count"), [("full", 38_802_290), ("quarter", 38_675_546)])
def test_parameters(output, count):
    with torch.device("meta"):
        net = create_model("flownet_s", output=output)
    assert sum(parameter.numel() for parameter in net.parameters()) == count


def test_channels_of_the_decoder():
    """Of the released code: what arrives at each level is a deconvolution, a skip connection and a flow of two."""
    with torch.device("meta"):
        net = FlowNetS()
    inputs = {level: layer.in_channels for level, layer in net.predictor.items()}
    assert inputs == {"6": 1024, "5": 1026, "4": 770, "3": 386, "2": 194, "1": 98, "0": 24}


@pytest.mark.parametrize(("output", "factor"), [("full", 1), ("quarter", 4)])
def test_shapes_and_gradients(output, factor):
    net = FlowNetS(4, output)
    first, second = torch.rand(2, 2, 3, 64, 128)
    flow = net(first, second)
    assert flow.shape == (2, 2, 64 // factor, 128 // factor)
    assert net.infer(first, second).shape == (2, 2, 64, 128)
    flow.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in net.parameters())
    assert not torch.allclose(flow, net(second, first))


def test_padding_is_tensorflows():
    """ "SAME" at stride 2: an output of ceil(n / 2), and of the padding the smaller half before."""
    for name, before in (("conv1", 2), ("conv2", 1), ("conv4", 0)):
        layer = FlowNetS(4).encoder[name].double()
        kernel = layer.weight.shape[-1]
        x = torch.randn(1, layer.in_channels, 8, 12, dtype=torch.float64)
        padded = torch.zeros(1, layer.in_channels, 8 + kernel, 12 + kernel, dtype=torch.float64)
        padded[..., before : before + 8, before : before + 12] = x
        expected = torch.zeros(1, layer.out_channels, 4, 6, dtype=torch.float64)
        for i in range(4):
            for j in range(6):
                patch = padded[0, :, 2 * i : 2 * i + kernel, 2 * j : 2 * j + kernel]
                expected[0, :, i, j] = (layer.weight * patch).sum((1, 2, 3)) + layer.bias
        torch.testing.assert_close(layer(x), expected)


class Fixed(FlowModel):
    """Flow is (8, -4) pixels of the network's input, at half its size; it records what it was given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.calls = []

    def forward(self, first, second):
        self.calls.append((tuple(first.shape), self.training, torch.is_grad_enabled()))
        flow = F.avg_pool2d(torch.zeros_like(first[:, :2]), 2)
        return flow + torch.tensor([8.0, -4.0]).view(1, 2, 1, 1) + self.weight


@pytest.mark.parametrize(
    ("shape", "size", "used"),
    [
        ((64, 128), None, (64, 128)),
        ((90, 100), None, (64, 128)),
        ((20, 300), None, (64, 320)),
        ((90, 100), (128, 64), (128, 64)),
    ],
)
def test_predict_resizes_images_and_vectors(shape, size, used):
    net = Fixed()
    prediction = net.predict(*torch.rand(2, 3, *shape), size=size)
    assert isinstance(prediction, FlowPrediction) and prediction.flow.shape == (1, 2, *shape)
    assert net.calls == [((1, 3, *used), False, False)] and net.training
    expected = torch.tensor([8 * shape[1] / used[1], -4 * shape[0] / used[0]]).view(1, 2, 1, 1)
    torch.testing.assert_close(prediction.flow, expected.expand(1, 2, *shape))


def test_bad_input_is_named():
    net = FlowNetS(4)
    image = torch.rand(3, 64, 64)
    with pytest.raises(TypeError, match="second: expected floating point"):
        net.predict(image, image.mul(255).byte())
    with pytest.raises(ValueError, match=r"first: expected values in \[0, 1\], got -"):
        net.predict(image - 1, image)
    with pytest.raises(ValueError, match=r"second: expected values in \[0, 1\], got nan"):
        net.predict(image, image * torch.nan)
    with pytest.raises(ValueError, match="second: expected the shape of first"):
        net.predict(image, torch.rand(3, 64, 65))
    with pytest.raises(ValueError, match="size: expected multiples of 64, got 64x96"):
        net.predict(image, image, size=(64, 96))
    with pytest.raises(ValueError, match="first: expected sides that are multiples of 64"):
        net(image[None, :, :60], image[None, :, :60])
    with pytest.raises(ValueError, match="width: expected a positive multiple of 4, got 6"):
        FlowNetS(6)
    with pytest.raises(ValueError, match="output: expected full or quarter, got 'half'"):
        FlowNetS(output="half")


def test_published_names_and_layouts():
    """A checkpoint of the released code: its names in the order in which its network is built, its layouts."""
    net = FlowNetS(4)
    content, rng = {"global_step": torch.zeros(())}, np.random.default_rng(0)

    def put(name, layer, transposed=False):
        shape = tuple(layer.weight.permute(2, 3, 1, 0).shape)  # HWIO; transposed: HWOI
        for suffix in ("", "/Adam", "/Adam_1"):
            content[f"netShare/{name}/weights{suffix}"] = torch.from_numpy(rng.standard_normal(shape)).float()
            if not transposed:
                content[f"netShare/{name}/biases{suffix}"] = torch.from_numpy(rng.standard_normal(shape[-1])).float()

    for index, layer in enumerate(net.encoder.values()):
        put(f"reluConv_{index}/conv" if index else "reluConv/conv", layer)
    put("predict_flow6/conv", net.predictor["6"])
    for index, level in enumerate("543210"):
        end = f"_{index}" if index else ""
        put(f"reluDeconv{end}/deconv", net.deconv[level], transposed=True)
        put(f"flowRefinementConcat{end}/upsampleFlow/deconv", net.upsample[level], transposed=True)
        put(f"predict_flow{level}/conv", net.predictor[level])
    net.load_state_dict(net.translate(content))

    weight = content["netShare/reluConv_3/conv/weights"]
    torch.testing.assert_close(net.encoder["conv3_1"].weight[3, 1, 0, 2], weight[0, 2, 1, 3])
    # TensorFlow's transposed convolution is the gradient of a convolution with "SAME" padding and HWIO weights.
    layer, kernel = net.deconv["2"], content["netShare/reluDeconv_3/deconv/weights"]
    x, y = torch.randn(1, kernel.shape[3], 3, 4), torch.zeros(1, kernel.shape[2], 6, 8, requires_grad=True)
    below = F.conv2d(F.pad(y, (1, 1, 1, 1)), kernel.permute(3, 2, 0, 1), stride=2)
    (expected,) = torch.autograd.grad(below, y, x)
    torch.testing.assert_close(layer(x), expected)
    own = net.state_dict()
    assert net.translate(own) is own
