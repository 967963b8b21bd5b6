import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from scenes import relative_error

from mdepth_fast.ops import disparity_to_depth

# Map and depth: the decoder's halvings, odd ratios, up, down, one axis alone, one pixel, and as it is.
SIZES = [
    ((6, 20), (48, 160)), ((24, 40), (48, 80)), ((5, 7), (11, 13)), ((9, 31), (4, 10)), ((12, 17), (12, 51)),
    ((12, 17), (36, 17)), ((30, 33), (10, 11)), ((1, 1), (5, 6)), ((5, 6), (1, 1)), ((1, 9), (3, 4)), ((2, 3), (67, 2)),
    ((7, 70), (7, 70)), ((31, 29), (32, 28)),
]  # fmt: skip
per_size = pytest.mark.parametrize("sizes", SIZES, ids=str)


def both(disparity, size, weight, **options):
    """Depth and gradient of the CPU kernel and of the reference."""
    results = []
    for backend in ("cpu", "reference"):
        leaf = disparity.clone().requires_grad_()
        depth = disparity_to_depth(leaf, size, backend=backend, **options)
        results.append((depth.detach(), *torch.autograd.grad((weight * depth).sum(), leaf)))
    return results


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@per_size
def test_against_loops(sizes, backend):
    disparity = torch.rand(2, 1, *sizes[0], dtype=torch.float64)
    got = disparity_to_depth(disparity, sizes[1], min_depth=0.2, max_depth=7.0, backend=backend)
    want = [oracles.disparity_to_depth(one, sizes[1], 0.2, 7.0) for one in disparity[:, 0].numpy()]
    np.testing.assert_allclose(got[:, 0].numpy(), want, rtol=1e-12)


@per_size
def test_against_the_reference(sizes):
    disparity = torch.rand(3, 1, *sizes[0], dtype=torch.float64)
    weight = torch.randn(3, 1, *sizes[1], dtype=torch.float64)
    got, want = both(disparity, sizes[1], weight)
    assert relative_error(got[:1], want[:1]) < 1e-13 and relative_error(got[1:], want[1:]) < 1e-12
    again, exact = both(disparity.float(), sizes[1], weight.float())[0], want
    assert relative_error(again[:1], exact[:1]) < 1e-5 and relative_error(again[1:], exact[1:]) < 1e-4


@per_size
def test_backward_is_the_adjoint(sizes):
    """<J v, w> = <v, J' w>, J v being a difference of depths; exact where the depth is linear in the disparity."""
    disparity = 0.3 + 0.4 * torch.rand(1, 1, *sizes[0], dtype=torch.float64)
    v, w = torch.randn_like(disparity), torch.randn(1, 1, *sizes[1], dtype=torch.float64)
    leaf = disparity.clone().requires_grad_()
    options = {"min_depth": 1.0, "max_depth": 2.0, "backend": "cpu"}
    depth = disparity_to_depth(leaf, sizes[1], **options)
    (grad,) = torch.autograd.grad((w * depth).sum(), leaf)
    step = 1e-6
    ends = [disparity_to_depth(disparity + sign * step * v, sizes[1], **options) for sign in (1, -1)]
    forward = ((ends[0] - ends[1]) / (2 * step) * w).sum()
    torch.testing.assert_close((grad * v).sum(), forward, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("sizes", [((3, 4), (7, 5)), ((6, 5), (2, 3)), ((3, 4), (3, 9)), ((3, 4), (3, 4))], ids=str)
def test_gradcheck(sizes):
    leaf = (0.1 + 0.8 * torch.rand(2, 1, *sizes[0], dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: disparity_to_depth(d, sizes[1], min_depth=0.5, backend="cpu"), leaf)


def test_ends_of_the_range_and_a_constant_map():
    ends = disparity_to_depth(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2))
    torch.testing.assert_close(ends.flatten(), torch.tensor([100.0, 0.1]))
    flat = disparity_to_depth(torch.full((1, 1, 5, 7), 0.25), (37, 12), min_depth=0.5, max_depth=1.0)
    torch.testing.assert_close(flat, torch.full((1, 1, 37, 12), 0.8))


def test_pixels_are_pytorchs_for_every_pair_of_sizes():
    """The map is a ramp, so a depth says where it was read; rows and columns take other numbers."""
    for size in range(1, 24):
        for other in range(1, 24):
            disparity = torch.arange(1.0, size + 1, dtype=torch.float64).view(1, 1, 1, size) / size
            weight = torch.arange(1.0, other + 1, dtype=torch.float64).view(1, 1, 1, other)
            for turned in (False, True):
                arguments = [(disparity.mT, (other, 3), weight.mT)] if turned else [(disparity, (3, other), weight)]
                got, want = both(*arguments[0])
                assert relative_error(got[:1], want[:1]) < 1e-13, (size, other)
                assert relative_error(got[1:], want[1:]) < 1e-12, (size, other)


@pytest.mark.parametrize(
    "sizes", [((6, 10), (24, 40)), ((9, 12), (3, 4)), ((8, 9), (8, 27)), ((7, 8), (7, 8))], ids=str
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_goes_where_the_references_goes(sizes, value):
    disparity, weight = torch.rand(1, 1, *sizes[0]), torch.rand(1, 1, *sizes[1])
    bad, bad_weight = disparity.clone(), weight.clone()
    bad[0, 0, 2, 2] = value
    bad_weight[0, 0, 2, 2] = value
    for arguments in ((bad, weight), (disparity, bad_weight)):
        got, want = both(arguments[0], sizes[1], arguments[1])
        torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-7, equal_nan=True)
        lost = ~want[1].isfinite()
        assert torch.equal(~got[1].isfinite(), lost) and (value == torch.inf or lost.any())
        torch.testing.assert_close(got[1][~lost], want[1][~lost], rtol=1e-4, atol=1e-6)


def test_only_input_and_output_are_kept():
    """The input for the error of a second derivative; a sigmoid keeps it too."""
    kept = []
    disparity = torch.rand(1, 1, 6, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        depth = disparity_to_depth(disparity, (24, 32), backend="cpu")
    assert sorted(kept) == sorted([disparity.data_ptr(), depth.data_ptr()])


@pytest.mark.parametrize("shape", [(3, 1, 65, 129), (1, 1, 1, 3000), (1, 1, 2000, 1)])
def test_same_bits_for_any_number_of_threads(shape):
    disparity, before = torch.rand(*shape), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            leaf = disparity.clone().requires_grad_()
            depth = disparity_to_depth(leaf, (131, 300), backend="cpu")
            results.append((depth, *torch.autograd.grad(depth.sum(), leaf)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


def test_a_size_from_another_tensor_compiles_for_any_shape():
    def step(disparity, image):
        return disparity_to_depth(disparity, image.shape[2:]).mean()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for height, width in ((8, 12), (10, 14)):
        disparity, image = torch.rand(1, 1, 4, 5, requires_grad=True), torch.rand(1, 3, height, width)
        got, want = compiled(disparity, image), step(disparity, image)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(*(torch.autograd.grad(one, disparity)[0] for one in (got, want)))


def test_errors():
    disparity = torch.rand(2, 1, 6, 7)
    for arguments, options, error, message in [
        ((disparity[:, 0],), {}, ValueError, r"^disparity: expected shape \(B, 1, H, W\)"),
        ((disparity.expand(2, 3, 6, 7),), {}, ValueError, r"^disparity: expected shape .*got \(2, 3, 6, 7\)"),
        ((disparity.int(),), {}, TypeError, r"^disparity: expected a floating-point tensor, got torch.int32"),
        ((disparity[..., :0],), {}, ValueError, r"^disparity: expected H and W of at least 1"),
        ((disparity, 12), {}, ValueError, r"^size: expected \(H, W\), two integers of at least 1, got 12"),
        ((disparity, (0, 3)), {}, ValueError, r"^size: expected .*got \(0, 3\)"),
        ((disparity, (4.0, 3)), {}, ValueError, r"^size: expected .*got \(4.0, 3\)"),
        (
            (disparity,),
            {"min_depth": 0},
            ValueError,
            r"^min_depth, max_depth: expected 0 < min_depth < max_depth, got 0",
        ),
        ((disparity,), {"min_depth": 2, "max_depth": 1}, ValueError, r"^min_depth, max_depth: expected .*got 2 and 1"),
        ((disparity,), {"max_depth": -1}, ValueError, r"^min_depth, max_depth: expected"),
    ]:
        with pytest.raises(error, match=message):
            disparity_to_depth(*arguments, **options)


def test_the_reference_is_the_published_chain():
    disparity = torch.rand(2, 1, 6, 20, dtype=torch.float64)
    full = F.interpolate(disparity, size=(48, 160), mode="bilinear", align_corners=False)
    torch.testing.assert_close(disparity_to_depth(disparity, (48, 160)), 1 / (0.01 + 9.99 * full))
