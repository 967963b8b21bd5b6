"""Folding of batch norms: same output, and only where nothing else sees what comes before."""

import pytest
import torch
from torch import nn

from mdepth_fast.models import DORN, create_model
from mdepth_fast.models.optimize import fold_batch_norms


def norms(module):
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


def randomize(module):
    """Statistics and weights as after a training."""
    for norm in norms(module):
        norm.running_mean.uniform_(-0.3, 0.3)
        norm.running_var.uniform_(0.5, 1.5)
        nn.init.uniform_(norm.weight, 0.3, 0.8)
        nn.init.uniform_(norm.bias, -0.2, 0.2)
    return module


@pytest.mark.parametrize(
    ("create", "size"),
    [
        (lambda: DORN(width=2, window=(49, 65), K=5), (49, 65)),
        (lambda: create_model("monodepth2_resnet18"), (64, 96)),
    ],
)
def test_same_output(create, size):
    model = randomize(create()).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimized = model.optimize_for_inference()
    assert type(optimized) is type(model) and optimized is not model
    assert not norms(optimized) and not any(p.requires_grad for p in optimized.parameters())
    assert not any(module.training for module in optimized.modules()) and model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    images = torch.rand(2, 3, *size)
    with torch.no_grad():
        expected, got = model.eval()(images), optimized(images)
    for y, z in zip(got, expected, strict=True):
        assert (y - z).abs().max() <= 1e-4 * z.abs().max()
    torch.testing.assert_close(optimized.predict(images).depth, model.predict(images).depth, rtol=1e-4, atol=1e-4)


class Cases(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("alone", "shared", "seen", "depthwise", "biased"):
            groups = 4 if name == "depthwise" else 1
            self.add_module(name, nn.Conv2d(4, 4, 3, padding=1, groups=groups, bias=name == "biased"))
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        for name in ("leading", "a", "b", "c", "d", "e", "f"):
            self.add_module(f"norm_{name}", nn.BatchNorm2d(3 if name == "leading" else 4))

    def forward(self, images):
        x = self.first(self.norm_leading(images))  # a norm that no convolution precedes
        x = self.norm_a(self.alone(x))  # folded
        x = self.norm_b(self.shared(x)) + self.norm_c(self.shared(x))  # called twice
        y = self.seen(x)
        x = self.norm_d(y) + y.relu()  # taken twice
        x = self.norm_e(self.depthwise(x)).relu_()  # folded
        return self.norm_f(self.biased(x))  # folded


def test_only_what_can_be_folded_is():
    torch.manual_seed(1)
    model = randomize(Cases()).double().eval()
    folded = fold_batch_norms(model, (8, 8))
    kept = {name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert kept == {"norm_leading", "norm_b", "norm_c", "norm_d"}
    images = torch.rand(2, 3, 9, 11, dtype=torch.float64)
    torch.testing.assert_close(folded(images), model(images), rtol=1e-10, atol=1e-10)
