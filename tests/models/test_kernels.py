"""Convolutions by other means: the same answers as torch's own, however arguments lie in memory."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.nn import functional

from isochunk.models import kernels
from isochunk.models.kernels import convolved, left_to_slow_code, max_pooled, transposed

KERNELS = ((3, 3, 3), (1, 3, 2), (4, 4, 4))
STRIDES = ((1, 1, 1), (4, 1, 1), (2, 2, 2))
CROPPED = (9, 20, 20)


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def cropped_source(maps):
    """Return a view, so that what does not look at strides answers garbage."""
    return drawn(1, maps, CROPPED[0], CROPPED[1], CROPPED[2] + 3)[..., 2:-1]


def check(answer, exact):
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("maps", "made"), [*product((1, 3, 16), (1, 8, 5))])
@torch.inference_mode()
def test_small_tensors_are_convolved_as_torch_does(maps, made):
    x = cropped_source(maps)
    assert left_to_slow_code(x)
    bias = drawn(1).expand(made)  # a view too
    for kernel in KERNELS:
        weight = drawn(made, maps, *kernel).flip(2)
        exact = functional.conv3d(x.double(), weight.double(), bias.double())
        check(convolved(x, weight, bias), exact)
        check(convolved(x, weight, None), exact - bias.double().view(-1, 1, 1, 1))


@pytest.mark.parametrize(("maps", "made"), [*product((1, 3, 16), (1, 8, 5))])
@torch.inference_mode()
def test_small_tensors_are_upsampled_as_torch_does(maps, made):
    x = cropped_source(maps)
    assert left_to_slow_code(x)
    bias = drawn(1).expand(made)
    for kernel, stride in product(KERNELS, STRIDES):
        margin = [max(k - s, 0) for k, s in zip(kernel, stride, strict=True)]
        weight = drawn(maps, made, *kernel).transpose(3, 4).contiguous().transpose(3, 4)
        for padding in ([0, 0, 0], margin):
            wide = (x.double(), weight.double(), bias.double())
            exact = functional.conv_transpose3d(*wide, stride, padding)
            check(transposed(x, weight, bias, stride, padding), exact)


def test_training_is_left_to_torch():
    """What is called instead knows no gradients."""
    x = cropped_source(3).clone().requires_grad_()
    weight = drawn(8, 3, 3, 3, 3)
    assert not left_to_slow_code(x)
    convolved(x, weight, None).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.any())


@torch.inference_mode()
def test_large_tensors_are_left_to_torch():
    assert left_to_slow_code(torch.empty(1, 1, 128, 160, 4))
    assert not left_to_slow_code(torch.empty(1, 1, 128, 161, 4))
    assert not left_to_slow_code(torch.empty(1, 1, 4, 4, 4, device="meta"))
    assert not left_to_slow_code(torch.empty(1, 1, 4, 4, 4, dtype=torch.bfloat16))


# Slabs: what a GPU does not count in one call.


@pytest.fixture
def counting_little(monkeypatch):
    """Have calls see at most 8000 elements; returns the numbers that convolutions saw."""
    seen = []

    def noting(call):
        def noted(x, *more, **named):
            answer = call(x, *more, **named)
            seen.append(max(x.numel(), answer.numel()))
            return answer

        return noted

    monkeypatch.setattr(kernels, "most_elements", lambda x: MOST)
    for name in ("conv3d", "linear", "conv_transpose3d", "max_pool3d"):
        monkeypatch.setattr(functional, name, noting(getattr(functional, name)))
    return seen


MOST = 8000


@pytest.mark.parametrize("innermost", [True, False])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 2), (4, 2, 2), (1, 1, 1)])
def test_large_tensors_are_convolved_in_slabs(counting_little, kernel, innermost):
    x, weight, bias = drawn(1, 3, 61, 11, 9), drawn(5, 3, *kernel), drawn(5)
    if innermost:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    exact = functional.conv3d(x.double(), weight.double(), bias.double())
    counting_little.clear()
    check(convolved(x, weight, bias), exact)
    assert len(counting_little) > 1
    assert max(counting_little) <= MOST


@pytest.mark.parametrize("kernel", [(4, 3, 3), (5, 2, 3), (9, 2, 2), (16, 3, 3)])
@pytest.mark.parametrize("stride", [(1, 1, 1), (4, 2, 2), (3, 1, 1)])
def test_large_tensors_are_upsampled_in_slabs(counting_little, kernel, stride):
    x, weight, bias = drawn(1, 3, 53, 5, 4), drawn(3, 2, *kernel), drawn(2)
    margin = tuple(max(k - s, 0) for k, s in zip(kernel, stride, strict=True))
    for padding in ((0, 0, 0), margin, tuple(m // 2 for m in margin)):
        for more in ((0, 0, 0), (0, *(s - 1 for s in stride[1:]))):
            wide = (x.double(), weight.double(), bias.double())
            exact = functional.conv_transpose3d(*wide, stride, padding, more)
            counting_little.clear()
            check(transposed(x, weight, bias, stride, padding, more), exact)
            assert max(counting_little) <= MOST


def test_large_tensors_are_pooled_in_slabs(counting_little):
    x = drawn(1, 3, 60, 12, 10)
    for stride in ((1, 2, 2), (2, 2, 2), (3, 1, 1)):
        exact = functional.max_pool3d(x, stride)
        counting_little.clear()
        check(max_pooled(x, stride), exact.double())
        assert len(counting_little) > 1
        assert max(counting_little) <= MOST
