import numpy as np
import oracles
import pytest
import torch
from scenes import relative_error, scene

from mdepth_fast.ops import inverse_warp, view_synthesis_loss

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])
PADDINGS = pytest.mark.parametrize("padding", ["masked", "grey"])


def pair(batch, height, width, dtype=torch.float32, motion=0.2, seed=0):
    """The arguments by name; about a third of the pixels falls outside the source."""
    target, sources, depths, K, T, source_K = scene(batch, height, width, 1, 1, dtype, seed, motion)
    tensors = dict(target=target, source=sources[:, 0], depth=depths[0], K=K, T=T[:, 0], source_K=source_K[:, 0])
    return tensors | {"weight": torch.rand(depths[0].shape, dtype=torch.float64).to(dtype)}


@BACKENDS
@PADDINGS
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("size", [(1, 3, 3), (2, 5, 7), (1, 4, 34)])
def test_against_loops(backend, padding, weighted, size):
    batch, height, width = size
    tensors = pair(*size, torch.float64)
    if not weighted:
        tensors["weight"] = torch.ones_like(tensors["weight"])
    arrays = {name: value.numpy() for name, value in tensors.items()}
    arrays["depth"], arrays["weight"] = arrays["depth"][:, 0], arrays["weight"][:, 0]
    each = [oracles.view_synthesis_loss(**{k: v[b] for k, v in arrays.items()}, padding=padding) for b in range(batch)]
    l1, ssim = np.sum(each, 0)
    got = view_synthesis_loss(
        **{**tensors, "weight": tensors["weight"] if weighted else None}, padding=padding, backend=backend
    )
    np.testing.assert_allclose(got.l1.item(), l1 / (batch * 3 * height * width), rtol=1e-11)
    np.testing.assert_allclose(got.ssim.item(), ssim / (batch * 3 * (height - 2) * (width - 2)), rtol=1e-11)
    alone = view_synthesis_loss(
        **{**tensors, "weight": tensors["weight"] if weighted else None}, padding=padding, ssim=False, backend=backend
    )
    torch.testing.assert_close(alone.l1, got.l1, rtol=1e-14, atol=0)
    assert alone.ssim.item() == 0


@PADDINGS
@pytest.mark.parametrize("ssim", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("size", [(2, 34, 70), (1, 65, 254)])
def test_gradients_equal_the_references_in_double(padding, ssim, weighted, size):
    tensors = pair(*size, torch.float64, motion=0.1)
    if not weighted:
        del tensors["weight"]
    names = [name for name in tensors if name not in ("target", "source")]
    results = []
    for backend in ("cpu", "reference"):
        leaves = {name: tensors[name].clone().requires_grad_() for name in names}
        loss = view_synthesis_loss(**{**tensors, **leaves}, padding=padding, ssim=ssim, backend=backend)
        results.append(torch.autograd.grad(0.3 * loss.l1 + 2 * loss.ssim, list(leaves.values())))
    for name, got, want in zip(names, *results):
        assert relative_error([got], [want]) < 1e-9, name


@BACKENDS
def test_a_still_camera_sees_all_but_the_last_row_and_column(backend):
    """vid2depth's mask wants a neighbour to the right and below, even of positions that lie on a pixel."""
    target, source = torch.rand(2, 3, 8, 11), torch.rand(2, 3, 8, 11)
    K = torch.tensor([[8.0, 0, 5], [0, 8, 4], [0, 0, 1]]).repeat(2, 1, 1)
    still, depth = torch.eye(4).repeat(2, 1, 1), torch.ones(2, 1, 8, 11)
    weight = torch.ones(2, 1, 8, 11).requires_grad_()
    loss = view_synthesis_loss(target, source, depth, K, still, weight=weight, backend=backend)
    error = (source - target).abs()[..., :-1, :-1]
    torch.testing.assert_close(loss.l1, error.sum() / target.numel())
    (grad,) = torch.autograd.grad(loss.l1, weight)
    torch.testing.assert_close(grad[..., :-1, :-1], error.sum(1, keepdim=True) / target.numel())
    assert (grad[..., -1] == 0).all() and (grad[..., -1, :] == 0).all()
    same = view_synthesis_loss(target, target, depth, K, still, backend=backend)
    assert same.l1 < 1e-6 and same.ssim < 1e-5


@BACKENDS
def test_nothing_in_view(backend):
    """Masked, such pixels count nothing; grey, they are compared with the middle of the image range."""
    target, source = torch.rand(1, 3, 6, 9), torch.rand(1, 3, 6, 9)
    K = torch.tensor([[[8.0, 0, 4], [0, 8, 3], [0, 0, 1]]])
    for shift, depth in ((50.0, 1.0), (0.0, -1.0)):  # far to the side, and behind the camera
        T = torch.eye(4)[None].clone()
        T[0, 0, 3] = shift
        T.requires_grad_()
        depths = torch.full((1, 1, 6, 9), depth).requires_grad_()
        masked = view_synthesis_loss(target, source, depths, K, T, backend=backend)
        assert masked.l1 == 0 and masked.ssim == 0
        grey = view_synthesis_loss(target, source, depths, K, T, padding="grey", backend=backend)
        torch.testing.assert_close(grey.l1, (target - 0.5).abs().mean())
        for loss in (*masked, *grey):
            for grad in torch.autograd.grad(loss, [depths, T], retain_graph=True):
                assert (grad == 0).all()


@BACKENDS
def test_windows_across_the_masks_edge_see_the_border(backend):
    """As in the released vid2depth: SSIM of a half-masked window counts by its share of the mask, and what lies outside
    reads the nearest pixel of the border."""
    tensors = pair(1, 12, 15, torch.float64)
    del tensors["weight"]
    warped, _ = inverse_warp(*(tensors[name] for name in ("source", "depth", "K", "T")), source_K=tensors["source_K"])
    still = torch.eye(4, dtype=torch.float64)[None]
    weight = torch.rand(1, 1, 12, 15, dtype=torch.float64)
    weight[..., -1] = weight[..., -1, :] = 0  # where a still camera sees nothing
    ones = torch.ones_like(tensors["depth"])
    want = view_synthesis_loss(tensors["target"], warped, ones, tensors["K"], still, weight=weight, backend=backend)
    inside = torch.autograd.grad(
        view_synthesis_loss(**tensors, weight=ones.requires_grad_(), backend=backend).l1, ones
    )[0].ne(0)
    got = view_synthesis_loss(**tensors, weight=weight, backend=backend)
    other = view_synthesis_loss(
        tensors["target"], warped, ones.detach(), tensors["K"], still, weight=weight * inside, backend=backend
    )
    assert 0.2 < inside.double().mean() < 0.95 and got.ssim < want.ssim
    torch.testing.assert_close(got.ssim, other.ssim)
    torch.testing.assert_close(got.l1, other.l1)


@BACKENDS
@PADDINGS
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_input_gives_a_non_finite_loss(backend, padding, value):
    tensors = pair(1, 9, 33, motion=0.01)
    for name, tensor in tensors.items():
        broken = tensor.clone()
        broken[(0,) * broken.dim() if broken.dim() < 4 else (0, 0, 4, 7)] = value
        l1, ssim = view_synthesis_loss(**{**tensors, name: broken}, padding=padding, backend=backend)
        assert not torch.isfinite(l1) and not torch.isfinite(ssim), name


def test_nothing_but_the_gradients_is_kept_for_backward():
    tensors = pair(2, 32, 48)
    leaves = {name: tensors[name].requires_grad_() for name in ("depth", "T", "weight")}
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = view_synthesis_loss(**tensors)
    inputs = {t.untyped_storage().data_ptr() for t in tensors.values()}
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    kept = sum(size for pointer, size in kept.items() if pointer not in inputs)
    maps, matrices = 2 * 2 * 2 * 32 * 48 * 4, 2 * 2 * 12 * 8
    small = 4096  # the 3x4 matrices of the projection itself
    assert maps + matrices <= kept <= maps + matrices + small
    total = loss.l1 + loss.ssim
    total.backward(retain_graph=True)
    first = {name: leaf.grad.clone() for name, leaf in leaves.items()}
    total.backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, 2 * first[name])


def test_no_gradient_is_computed_when_nobody_asks():
    tensors = pair(2, 12, 18)
    images = {name: tensors[name].clone().requires_grad_() for name in ("target", "source")}
    loss = view_synthesis_loss(**{**tensors, **images})
    assert not loss.l1.requires_grad and not loss.ssim.requires_grad
    only_weight = tensors["weight"].clone().requires_grad_()
    (grad,) = torch.autograd.grad(sum(view_synthesis_loss(**{**tensors, "weight": only_weight})), only_weight)
    assert (grad != 0).any()
    torch.testing.assert_close(sum(loss), sum(view_synthesis_loss(**{**tensors, "weight": only_weight})).detach())


def test_without_a_weight_where_something_traces():
    """The registered functions know of a gradient that there is not."""
    tensors = pair(1, 6, 7)
    del tensors["weight"]
    leaves = {name: tensors[name].requires_grad_() for name in ("depth", "T")}

    def run():
        l1, ssim = view_synthesis_loss(**tensors)
        return torch.autograd.grad(l1 + ssim, list(leaves.values()))

    want = run()
    with torch.autograd.profiler.profile():
        got = run()
    assert all(torch.equal(a, b) for a, b in zip(got, want))


def test_errors():
    good = pair(2, 6, 7)
    good["source_K"] = good["weight"] = None
    for change, error, message in [
        ({"target": good["target"][:, :1]}, ValueError, r"^target: expected shape \(B, 3, H, W\).*got \(2, 1, 6, 7\)"),
        (
            {"source": good["source"][..., :5]},
            ValueError,
            r"^source: expected shape .*\(2, 3, 6, 7\), got \(2, 3, 6, 5\)",
        ),
        ({"depth": good["depth"][:1]}, ValueError, r"^depth: expected shape \(B, 1, H, W\)"),
        ({"K": good["K"][0]}, ValueError, r"^K: expected shape"),
        ({"T": good["T"][:, :3]}, ValueError, r"^T: expected shape \(B, 4, 4\)"),
        ({"source_K": good["K"][:1]}, ValueError, r"^source_K: expected shape"),
        ({"weight": good["target"]}, ValueError, r"^weight: expected shape .*\(2, 1, 6, 7\), got \(2, 3, 6, 7\)"),
        ({"weight": good["depth"] > 0}, TypeError, r"^weight: expected a floating-point tensor, got torch.bool"),
        ({"K": good["K"].to("meta")}, ValueError, r"^K: expected device cpu, where target is, got meta"),
        ({"padding": "border"}, ValueError, r'^padding: expected "masked" or "grey", got \'border\''),
    ]:
        with pytest.raises(error, match=message):
            view_synthesis_loss(**{**good, **change})
    thin = {name: value[..., :2] if value is not None and value.dim() == 4 else value for name, value in good.items()}
    with pytest.raises(ValueError, match=r"^target: expected H and W of at least 3 \(3x3 windows\), got 6x2"):
        view_synthesis_loss(**thin)
    assert view_synthesis_loss(**thin, ssim=False).l1.isfinite()
