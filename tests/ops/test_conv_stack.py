import numpy as np
import oracles
import pytest
import torch
from scenes import relative_error

from mdepth_fast import use_backend
from mdepth_fast.ops import ConvBlock, conv_stack, nnconv5

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])


def block(inputs, outputs, kernel=3, depthwise=True, dtype=torch.float64, **options):
    """Random weights of a block."""
    weight = torch.randn(outputs, inputs, *[1 if depthwise else kernel] * 2, dtype=dtype) / inputs**0.5
    bias = torch.randn(outputs, dtype=dtype)
    if not depthwise:
        return ConvBlock(weight, bias, **options)
    dw_weight = torch.randn(inputs, 1, kernel, kernel, dtype=dtype) / kernel
    return ConvBlock(weight, bias, dw_weight, torch.randn(inputs, dtype=dtype), **options)


@BACKENDS
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("depthwise", "doubled"), [(True, False), (True, True), (False, False), (False, True)])
def test_against_loops(backend, kernel, stride, depthwise, doubled):
    if depthwise and kernel == 1:
        return
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    one = block(3, 4, kernel, depthwise, stride=stride, cap=1.5, doubled=doubled)
    got = conv_stack(x, [one], backend=backend)
    arrays = [None if tensor is None else tensor.numpy() for tensor in one[:4]]
    for b in range(2):
        want = oracles.conv_block(x[b].numpy(), *arrays, stride=stride, cap=1.5, doubled=doubled)
        np.testing.assert_allclose(got[b].numpy(), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threads", [1, 3])
def test_vectors_panels_strips_and_sharing(dtype, threads):
    """Numbers of channels beside whole vectors and panels, lines beside pairs and sevens, several strips, more threads
    than panels, more outputs than pixels and the other way round."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for batch, inputs, outputs, height, width, kernel, stride in [
            (1, 33, 17, 9, 8, 3, 2),
            (2, 20, 40, 5, 6, 3, 1),
            (1, 88, 120, 6, 15, 3, 2),
            (3, 64, 33, 7, 7, 5, 1),
            (1, 16, 200, 2, 3, 5, 2),
            (1, 300, 5, 11, 40, 5, 1),
            (2, 24, 56, 30, 31, 3, 1),
            (70, 8, 24, 2, 2, 3, 1),
            (1, 40, 1, 13, 9, 5, 1),
        ]:
            x = torch.randn(batch, inputs, height, width, dtype=dtype)
            blocks = [
                block(inputs, outputs, kernel, dtype=dtype, stride=stride, cap=2.0, doubled=True),
                block(outputs, outputs, 5, dtype=dtype, skip=0),
                block(outputs, inputs, 1, depthwise=False, dtype=dtype),
            ]
            got, want = (conv_stack(x, blocks, backend=backend) for backend in ("cpu", "reference"))
            assert relative_error([got], [want]) < (1e-13 if dtype == torch.float64 else 2e-6)
    finally:
        torch.set_num_threads(before)


def test_same_bits_in_every_layout_and_for_any_number_of_threads():
    x, before = torch.randn(1, 3, 64, 96), torch.get_num_threads()
    blocks = [
        block(3, 16, depthwise=False, dtype=torch.float32, stride=2, cap=6.0),
        block(16, 96, dtype=torch.float32, stride=2, cap=6.0),
        block(96, 64, kernel=5, dtype=torch.float32, doubled=True),
        block(64, 16, kernel=5, dtype=torch.float32, skip=0),
    ]
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results += [conv_stack(view, blocks) for view in (x, x.contiguous(memory_format=torch.channels_last))]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert all(result.is_contiguous(memory_format=torch.channels_last) for result in results)


def test_memory_of_a_result_lives_until_its_last_reader():
    blocks = [block(4, 4, doubled=k == 5, skip=(None, None, 0, 0, 1, None, 5)[k]) for k in range(7)]
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    got, want = (conv_stack(x, blocks, backend=backend) for backend in ("cpu", "reference"))
    assert relative_error([got], [want]) < 1e-13


def test_a_doubling_block_is_nnconv5():
    one, x = block(20, 30, 5, doubled=True), torch.randn(2, 20, 7, 9, dtype=torch.float64)
    dw_ones, ones = torch.ones(20, dtype=torch.float64), torch.ones(30, dtype=torch.float64)
    want = nnconv5(x, one.dw_weight, dw_ones, one.dw_bias, one.weight, ones, one.bias)
    assert torch.equal(conv_stack(x, [one]), want)


@BACKENDS
def test_nan_stays_where_its_windows_are(backend):
    x = torch.randn(1, 20, 12, 40, dtype=torch.float64)
    x[0, 1, 6, 20] = torch.nan
    bad = conv_stack(x, [block(20, 3, 5), block(3, 2, 3, depthwise=False)], backend=backend).isnan()
    window = torch.zeros_like(bad)
    window[..., 3:10, 17:24] = True
    assert torch.equal(bad, window)


def test_gradients_only_through_the_reference():
    x, one = torch.randn(1, 4, 6, 5, requires_grad=True), block(4, 3, dtype=torch.float32)
    (grad,) = torch.autograd.grad(conv_stack(x, [one], backend="reference").sum(), x)
    assert grad.any()
    with use_backend("cpu"), pytest.raises(RuntimeError, match=r"conv_stack: .* no gradient"):
        conv_stack(x, [one]).sum().backward()


def test_errors():
    x, good, dense = torch.randn(2, 4, 8, 6), block(4, 3), block(4, 3, depthwise=False)
    wide = block(3, 3, 5)
    for blocks, error, message in [
        ([], ValueError, "^blocks: expected at least one"),
        ([good._replace(stride=3)], ValueError, r"^blocks\[0\].stride: expected 1 or 2, got 3"),
        ([good, wide._replace(cap=0.0)], ValueError, r"^blocks\[1\].cap: expected a number above 0 or None, got 0.0"),
        ([wide], ValueError, r"^blocks\[0\].weight: expected .*\(any, 4, any, any\), got \(3, 3, 1, 1\)"),
        ([good._replace(weight=None)], TypeError, r"^blocks\[0\].weight: expected a tensor"),
        ([good._replace(weight=dense.weight)], ValueError, "k = 1 behind a depthwise convolution, got"),
        ([dense._replace(weight=dense.weight[..., :2, :2])], ValueError, "weight: expected .* k odd, got shape"),
        ([good._replace(bias=good.bias[:2])], ValueError, r"^blocks\[0\].bias: .*\(3\), got \(2,\)"),
        ([good._replace(bias=good.bias.int())], TypeError, r"^blocks\[0\].bias: expected a floating-point tensor"),
        ([good._replace(dw_bias=None)], TypeError, r"^blocks\[0\].dw_bias: expected a tensor"),
        ([block(4, 3, 7)], ValueError, r"^blocks\[0\].dw_weight: expected 3x3 or 5x5, got shape \(4, 1, 7, 7\)"),
        ([good._replace(bias=good.bias.to("meta"))], ValueError, "expected device cpu, where x is, got meta"),
        ([good._replace(skip=0)], ValueError, r"^blocks\[0\].skip: expected the index of a block before it .* got 0$"),
        ([good, wide._replace(stride=2, skip=0)], ValueError, r"\(3, 4, 3\), got 0 of \(3, 8, 6\)"),
    ]:
        with pytest.raises(error, match=message):
            conv_stack(x, blocks)
    with pytest.raises(ValueError, match=r"^x: expected shape \(B, C, H, W\)"):
        conv_stack(x[0], [good])
    with pytest.raises(ValueError, match=r"^x: expected C, H and W of at least 1, got shape \(2, 4, 0, 6\)"):
        conv_stack(x[:, :, :0], [good])
