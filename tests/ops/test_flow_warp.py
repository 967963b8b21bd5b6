import numpy as np
import oracles
import pytest
import torch
from cases import flow_inputs

from mdepth_fast.geometry import backproject
from mdepth_fast.ops import flow_warp, inverse_warp

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])


@BACKENDS
@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("source_size", [(9, 19), (7, 30), (1, 5), (1, 1)], ids=str)
def test_against_loops(backend, padding, source_size):
    source, flow = torch.rand(2, 3, *source_size, dtype=torch.float64), flow_inputs(2, 9, 19, torch.float64)["flow"]
    warped, valid = flow_warp(source, flow, padding=padding, backend=backend)
    for b in range(2):
        want, inside = oracles.flow_warp(source[b].numpy(), flow[b].numpy(), padding)
        np.testing.assert_allclose(warped[b].numpy(), want, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(valid[b, 0].numpy(), inside)


@BACKENDS
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_no_flow_is_the_identity_and_whole_pixels_shift(backend, padding):
    source, flow = torch.rand(1, 3, 31, 64), torch.zeros(1, 2, 31, 64)
    warped, valid = flow_warp(source, flow, padding=padding, backend=backend)
    torch.testing.assert_close(warped, source, rtol=0, atol=0 if backend == "cpu" else 1e-5)
    assert valid.all()
    flow[:, 0], flow[:, 1] = -5.0, 3.0  # a rectified pair of disparity 5, three rows below
    warped, valid = flow_warp(source, flow, padding=padding, backend=backend)
    torch.testing.assert_close(warped[..., :-3, 5:], source[..., 3:, :-5], rtol=0, atol=1e-5)
    assert valid[..., :-3, 5:].all() and not valid[..., :5].any() and not valid[..., -3:, :].any()


def test_flow_of_a_camera_motion_warps_as_inverse_warp():
    """The optical flow of a scene and its depth and pose are two descriptions of one motion; gradients by the source
    too."""
    source = torch.rand(2, 3, 21, 45, dtype=torch.float64).requires_grad_()
    depth = 2 + torch.rand(2, 1, 21, 45, dtype=torch.float64)
    K = torch.tensor([[40.0, 0, 22], [0, 40.0, 10], [0, 0, 1]], dtype=torch.float64).expand(2, 3, 3)
    T = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    T[:, :3, 3] = torch.tensor([0.2, -0.1, 0.1])
    points = backproject(depth, K) + T[:, :3, 3, None, None]
    projected = (K @ points.flatten(2)).unflatten(2, (21, 45))
    v, u = torch.meshgrid(torch.arange(21.0), torch.arange(45.0), indexing="ij")
    flow = projected[:, :2] / projected[:, 2:] - torch.stack([u, v])
    results = []
    for warped, valid in (flow_warp(source, flow, backend="cpu"), inverse_warp(source, depth, K, T, backend="cpu")):
        results.append((warped, valid, *torch.autograd.grad(warped.square().sum(), source)))
    assert torch.equal(results[0][1], results[1][1])
    for a, b in zip(results[0], results[1]):
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=1e-9)


def test_no_gradient_where_clamped_but_with_zeros():
    source, flow = torch.rand(1, 1, 4, 6), torch.full((1, 2, 4, 6), 100.0).requires_grad_()
    for backend in ("cpu", "reference"):
        warped, valid = flow_warp(source, flow, backend=backend)
        assert not valid.any() and not torch.autograd.grad(warped.sum(), flow)[0].any()
        assert (flow_warp(source, flow, padding="zeros", backend=backend)[0] == 0).all()


@BACKENDS
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_a_flow_that_is_not_finite_shows_at_its_pixel_only(backend, value):
    source, flow = torch.rand(1, 3, 8, 40).requires_grad_(), torch.rand(1, 2, 8, 40)
    flow[0, :, 3, 17] = value  # the sum of both parts of 3e38 is not finite
    flow.requires_grad_()
    warped, valid = flow_warp(source, flow, backend=backend)
    bad = ~torch.isfinite(warped).all(1)
    assert bad.sum() == 1 and bad[0, 3, 17] and not valid[0, 0, 3, 17]
    for grad in torch.autograd.grad(warped[..., :3, :].sum(), [source, flow]):
        assert grad.isfinite().all()


@pytest.mark.parametrize("value", [1e30, -1e30, 2.0**31, -(2.0**31)])
def test_huge_flows_do_not_crash(value):
    warped, valid = flow_warp(torch.rand(1, 3, 8, 40), torch.full((1, 2, 8, 40), value), backend="cpu")
    assert warped.isfinite().all() and not valid.any()


def test_errors():
    source, flow = torch.rand(2, 3, 6, 7), torch.rand(2, 2, 5, 7)
    for change, error, message in [
        ({"source": source[0]}, ValueError, r"^source: expected shape \(B, C, H, W\)"),
        (
            {"flow": flow[:1]},
            ValueError,
            r"^flow: expected shape \(B, 2, H, W\) = \(2, 2, any, any\), got \(1, 2, 5, 7\)",
        ),
        ({"flow": flow[:, :1]}, ValueError, r"^flow: expected shape"),
        ({"flow": flow.to("meta")}, ValueError, r"^flow: expected device cpu"),
        ({"flow": flow.long()}, TypeError, r"^flow: expected a floating-point tensor, got torch.int64"),
        ({"padding": "reflect"}, ValueError, r"^padding: expected \"border\" or \"zeros\", got 'reflect'"),
        ({"source": source[..., :0]}, ValueError, r"^source: expected H and W of at least 1"),
    ]:
        with pytest.raises(error, match=message):
            flow_warp(**{"source": source, "flow": flow, **change})
