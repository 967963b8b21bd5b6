import numpy as np
import oracles
import pytest
import torch
from cases import flow_inputs

from mdepth_fast.ops import flow_smoothness_loss

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])
FORMS = pytest.mark.parametrize("form", ["separate", "joint"])


@BACKENDS
@FORMS
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (6, 1), (5, 7), (33, 19), (70, 5)], ids=str)
def test_against_loops(backend, form, size):
    inputs = flow_inputs(2, *size, torch.float64)
    flow, mask = inputs["flow"], inputs["mask"]
    for one in (mask, torch.ones_like(mask)):
        got = flow_smoothness_loss(flow, mask=one, form=form, scale=3.5, backend=backend)
        want = oracles.flow_smoothness_loss(flow.numpy(), one[:, 0].numpy(), form, scale=3.5)
        np.testing.assert_allclose(got.item(), want, rtol=1e-12)
    np.testing.assert_allclose(got.item(), flow_smoothness_loss(flow, form=form, scale=3.5, backend=backend).item())


@BACKENDS
def test_one_edge(backend):
    """A step of 3 pixels between two halves: its penalty in the rows that cross it, that of no step elsewhere."""
    flow = torch.zeros(1, 2, 8, 10)
    flow[:, 0, :, 5:] = 3.0
    options = {"alpha": 0.5, "epsilon": 0.01, "backend": backend}
    edge, still = (9 + 1e-4) ** 0.5, 0.01
    separate = 8 * (edge + 8 * still) + 8 * 9 * still + 2 * 7 * 10 * still
    np.testing.assert_allclose(flow_smoothness_loss(flow, **options).item(), separate / 80, rtol=1e-5)
    joint = 7 * edge + 7 * 8 * still
    np.testing.assert_allclose(flow_smoothness_loss(flow, form="joint", **options).item(), joint / 80, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.21, 0.37, 0.5, 1.0])
def test_the_power_is_accurate_over_its_range(alpha):
    """Two pixels a distance s apart: the penalty of s, and its derivative, from 1e-12 to 1e15."""
    s = torch.cat([torch.zeros(1), torch.logspace(-12, 15, 4001, dtype=torch.float64)]).float()
    flow = torch.zeros(len(s), 2, 1, 2)
    flow[:, 0, 0, 0] = s
    flow.requires_grad_()
    options = {"alpha": alpha, "epsilon": 1e-6, "backend": "cpu"}
    exact, still = s.double(), torch.tensor(1e-12, dtype=torch.float64) ** alpha
    base = exact**2 + 1e-12
    (grad,) = torch.autograd.grad(flow_smoothness_loss(flow, **options) * len(s), flow)
    want = alpha * exact * base ** (alpha - 1)
    slope = grad[:, 0, 0, 0].double()
    assert slope[0] == 0 and ((slope - want) / want)[1:].abs().max() < 6e-7
    some = slice(None, None, 20)
    loss = torch.stack([flow_smoothness_loss(one, **options) for one in flow.detach()[some].split(1)]).double()
    want = (base[some] ** alpha + still) / 2
    assert ((loss - want) / want).abs().max() < 3e-7


@BACKENDS
@FORMS
def test_bool_mask_and_what_it_hides(backend, form):
    inputs = flow_inputs(2, 40, 19)
    on = inputs["mask"] != 0
    results = []
    for flow in (inputs["flow"], inputs["flow"].masked_fill(~on, torch.nan)):
        leaf = flow.clone().requires_grad_()
        loss = flow_smoothness_loss(leaf, mask=on, form=form, backend=backend)
        results.append((loss, torch.autograd.grad(loss, leaf)[0]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=0)
    assert results[0][1].any() and not results[0][1][(~on).expand(-1, 2, -1, -1)].any()
    for value in (torch.nan, torch.inf):
        bad = inputs["flow"].clone()
        bad[1, 1, 20, 7] = value
        assert not flow_smoothness_loss(bad, form=form, backend=backend).isfinite()


def test_errors():
    inputs = flow_inputs(2, 6, 7)
    flow, mask = inputs["flow"], inputs["mask"]
    for change, error, message in [
        ({"flow": flow[:, 0]}, ValueError, r"^flow: expected shape \(B, 2, H, W\)"),
        ({"flow": flow[:, :1]}, ValueError, r"^flow: expected shape"),
        ({"mask": mask[..., 1:]}, ValueError, r"^mask: expected shape \(B, 1, H, W\) = \(2, 1, 6, 7\), got"),
        ({"mask": 1.0}, TypeError, r"^mask: expected a tensor \(B, 1, H, W\), got float"),
        ({"form": "both"}, ValueError, r"^form: expected one of separate, joint, got 'both'"),
        ({"alpha": 1.01}, ValueError, r"^alpha: expected a number above 0, at most 1, got 1.01"),
        ({"scale": float("inf")}, ValueError, r"^scale: expected"),
        ({"epsilon": 1e-13}, ValueError, r"^epsilon: expected a finite number of at least 1e-12, got 1e-13"),
        ({"flow": flow[..., :0], "mask": None}, ValueError, r"^flow: expected H and W of at least 1"),
    ]:
        with pytest.raises(error, match=message):
            flow_smoothness_loss(**{"flow": flow, "mask": mask, **change})
