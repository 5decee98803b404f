"""Attention by segment equals attention of each segment alone, in value and gradient."""

import sys
import types
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vipolyqwen_core.model import attention
from vipolyqwen_core.model.attention import attend, segment_attention
from vipolyqwen_core.processing.packing import Segments


def states(rows: int, seed: int = 0, heads: int = 4, shared: int = 2, size: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(rows, count, size, generator=generator, dtype=torch.float64, requires_grad=True)
        for count in (heads, shared, shared)
    ]


def one_by_one(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[int], causal: bool, scale: float = 0.3
) -> Tensor:
    """Softmax attention written out, segment after segment."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    outputs = []
    for q, k, v in zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True):
        scores = torch.einsum("ihd,jhd->hij", q, k) * scale
        if causal:
            scores = scores.masked_fill(torch.ones(len(q), len(q)).triu(1).bool(), -torch.inf)
        outputs.append(torch.einsum("hij,jhd->ihd", scores.softmax(2), v))
    return torch.cat(outputs)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 14), min_size=1, max_size=9), st.booleans())
def test_packed_attention_is_that_of_each_segment(lengths: list[int], causal: bool) -> None:
    ours, theirs = states(sum(lengths)), states(sum(lengths))
    weights = torch.randn(sum(lengths), 4, 8, dtype=torch.float64)
    packed = attend(*ours, Segments.of(lengths), causal, 0.3)
    alone = one_by_one(*theirs, lengths, causal)
    torch.testing.assert_close(packed, alone)
    (packed * weights).sum().backward()
    (alone * weights).sum().backward()
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, expected.grad)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [[3, 1, 4, 4, 1], [5, 5, 5], [1, 9]])
def test_gradients_hold_by_finite_differences(lengths: list[int], causal: bool) -> None:
    inputs = states(sum(lengths), heads=2, shared=1, size=2)
    segments = Segments.of(lengths)
    assert torch.autograd.gradcheck(lambda *rows: attend(*rows, segments, causal, 0.3), inputs)


@pytest.mark.parametrize("causal", [True, False])
def test_neighbours_get_no_gradient(causal: bool) -> None:
    query, key, value = states(12)
    attend(query, key, value, Segments.of([5, 3, 4]), causal, 0.3)[5:8].sum().backward()
    for rows in (query, key, value):
        assert rows.grad is not None
        assert rows.grad[5:8].any()
        assert not rows.grad[:5].any()
        assert not rows.grad[8:].any()


def test_a_sliding_window_is_refused() -> None:
    rows = [part[None].transpose(1, 2) for part in states(4)]
    with pytest.raises(ValueError, match="sliding window of 8 tokens"):
        segment_attention(torch.nn.Module(), *rows, None, 1.0, segments=Segments.of([4]), sliding_window=8)


def test_queries_and_keys_that_rotation_widened_attend_in_the_type_of_the_values() -> None:
    query, key, value = (part[None].transpose(1, 2).float() for part in states(5))
    module = torch.nn.Module()
    module.is_causal = True
    narrow = [rows.bfloat16() for rows in (query, key, value)]
    found, _ = segment_attention(module, query, key, narrow[2], None, 0.3, segments=Segments.of([2, 3]))
    expected, _ = segment_attention(module, *narrow, None, 0.3, segments=Segments.of([2, 3]))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("installed", "architecture", "chosen"),
    [
        (("flash_attn", "flash_attn.cute"), 9, "FlashAttention-4"),
        (("flash_attn", "flash_attn.cute"), 8, "FlashAttention-2"),
        (("flash_attn", "flash_attn.cute"), 10, "FlashAttention-2"),
        (("flash_attn",), 9, "FlashAttention-2"),
        ((), 9, "torch's kernel for segments"),
    ],
)
def test_the_fastest_kernel_that_is_installed_is_used(
    installed: tuple[str, ...], architecture: int, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def varlen(query: Tensor, key: Tensor, value: Tensor, *bounds: Any, **named: Any) -> Any:
        """The functions of both packages: bounds by place or by name, one result or two."""
        cute = not bounds
        starts, ends = (named["cu_seqlens_q"], named["cu_seqlens_k"]) if cute else bounds[:2]
        assert torch.equal(starts, ends)
        assert not cute or query.shape[2] % attention.HEAD_MULTIPLE == 0
        lengths = [int(length) for length in starts.diff()]
        attended = one_by_one(query, key, value, lengths, named["causal"], named["softmax_scale"])
        return (attended, None) if cute else attended

    for name in ("flash_attn", "flash_attn.cute"):
        module = types.ModuleType(name)
        module.flash_attn_varlen_func = varlen  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module if name in installed else None)
    attention.fastest_kernel.cache_clear()
    kernel = attention.fastest_kernel(architecture)
    attention.fastest_kernel.cache_clear()
    assert kernel.__doc__ == chosen
    if installed:
        rows, lengths = states(9), [4, 5]
        found = kernel(*rows, Segments.of(lengths), True, 0.3)
        torch.testing.assert_close(found, one_by_one(*rows, lengths, True))


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("size", [16, 32, 80, 128])
@pytest.mark.parametrize("kernel", [attention._torch_kernel, attention._flash_2, attention._flash_4])
def test_kernels_on_cuda_equal_the_reference(kernel: Any, size: int, causal: bool) -> None:
    if kernel is not attention._torch_kernel:
        if kernel is attention._flash_4 and torch.cuda.get_device_capability()[0] != attention.HOPPER:
            pytest.skip("FlashAttention-4 is used on Hopper only")
        try:
            kernel = kernel()
        except ImportError as error:
            pytest.skip(str(error))
    lengths = [7, 1, 600, 64, 64]
    ours = [rows.detach().cuda().bfloat16().requires_grad_() for rows in states(sum(lengths), size=size)]
    theirs = [rows.detach().cpu().double().requires_grad_() for rows in ours]
    segments = Segments.of(lengths)
    moved = Segments(segments.lengths, segments.cu_seqlens.cuda())
    packed = kernel(*ours, moved, causal, 0.3)
    alone = one_by_one(*theirs, lengths, causal)
    weights = torch.randn(alone.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    (packed * weights.cuda()).sum().backward()
    (alone * weights.double()).sum().backward()
    results = [(packed, alone), *((mine.grad, known.grad) for mine, known in zip(ours, theirs, strict=True))]
    for found, expected in results:
        assert found is not None
        assert expected is not None
        assert (found.cpu().double() - expected).norm() < 1e-2 * expected.norm()
