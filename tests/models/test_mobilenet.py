import pytest
import torch

from mdepth_fast.models import FastDepth, MobileNet
from mdepth_fast.models.mobilenet import CHANNELS, mobilenet_units

SMALL = (8, 8, 16, 16, 16, 16, 24, 24, 24, 24, 24, 24, 32, 32)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_published_size_and_names():
    with torch.device("meta"):
        net = MobileNet()
        assert parameters(net.model) == 3_206_976 and parameters(net) == 4_231_976
        assert net(torch.empty(2, 3, 224, 160)).shape == (2, 1000)
        assert net.model(torch.empty(2, 3, 224, 160)).shape == (2, 1024, 7, 5)
    keys = net.state_dict().keys()
    assert {"model.0.0.weight", "model.0.1.running_var", "model.13.3.weight", "model.13.4.bias", "fc.bias"} <= keys
    units = {".".join(key.split(".")[:3]) for key in keys if key.startswith("model.")}
    assert units == {f"model.{i}.{k}" for i in range(14) for k in ((0, 1, 3, 4) if i else (0, 1))}


def test_strides_and_widths():
    x, sizes = torch.empty(1, 3, 64, 64, device="meta"), []
    with torch.device("meta"):
        for unit in mobilenet_units():
            x = unit(x)
            sizes.append(x.shape[-1])
    assert sizes == [32, 32, 16, 16, 8, 8, 4, 4, 4, 4, 4, 4, 2, 2] and CHANNELS[-1] == x.shape[1]


def test_activations_are_capped_at_six():
    units = mobilenet_units(SMALL).eval()
    torch.nn.init.constant_(units[-1][4].bias, 7.0)
    assert units(torch.rand(1, 3, 32, 32)).max() == 6


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_encoder_reads_the_imagenet_file(tmp_path, wrapped):
    """As data-parallel training saves it, or bare; the classifier is left aside."""
    net = MobileNet(10, channels=SMALL)
    state = net.state_dict()
    if wrapped:
        state = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}
    torch.save(state, tmp_path / "model_best.pth.tar")
    options = {"encoder_channels": SMALL, "decoder_channels": (8,) * 5, "skip": "none"}
    model = FastDepth(**options, encoder_weights=tmp_path / "model_best.pth.tar")
    for key, value in model.encoder.state_dict().items():
        assert torch.equal(value, net.model.state_dict()[key])
    with pytest.raises(ValueError, match=r"does not fit the model: .*0.0.weight: expected shape \(9, 3, 3, 3\)"):
        options["encoder_channels"] = (9, *SMALL[1:])
        FastDepth(**options, encoder_weights=tmp_path / "model_best.pth.tar")


def test_errors():
    for bad in (CHANNELS[:-1], (0, *CHANNELS[1:])):
        with pytest.raises(ValueError, match="channels: expected 14 numbers of channels, got"):
            mobilenet_units(bad)
