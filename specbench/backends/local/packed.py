"""Linear layers whose weights lie as the CPU's matrix kernels want them.

A pass over one token reads every weight once and does little with it. In the order of the file oneDNN reads bfloat16 at
about half the speed that it reaches in its own blocked order, and rearranging is done once, at load. The weights are
the same: only the order of the sums differs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Kernels are chosen for this many tokens at once; the same weights serve any other number.
_TOKENS = 1


class Packed(nn.Module):
    """`x @ weight.T + bias` for x [..., in] -> [..., out], with the weight [out, in] in blocked order. `copies` says
    that the plain weight stays in memory as well, because the input embedding is the same tensor."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, copies: bool = False) -> None:
        super().__init__()
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _TOKENS)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.copies = copies
        self._run: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
        self._add: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.binary
        # Plain attributes: a module looks its parameters up in Python, at every call.
        self._given = (self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, *self._given, "none", [], "")

    def onto(self, stream: Tensor, x: Tensor) -> Tensor:
        """`stream` + forward(x), in one operation."""
        return self._add(x, stream, *self._given, "add")


class Plain(nn.Module):
    """The same with the weight as it is."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)

    def onto(self, stream: Tensor, x: Tensor) -> Tensor:
        """`stream` + forward(x); on a device as one product that begins from the stream."""
        if self.bias is None and x.device.type != "cpu":
            rows = torch.addmm(stream.flatten(0, -2), x.flatten(0, -2), self.weight.t())
            return rows.view_as(stream)
        return stream + self.forward(x)


def packs(weight: Tensor) -> bool:
    """Whether this torch and this CPU have kernels for such a weight in blocked order, and gain by it: in float32 plain
    order is as fast."""
    known = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    names = ("_reorder_linear_weight", "_linear_pointwise", known.get(weight.dtype, ""))
    if weight.device.type != "cpu" or not names[-1] or not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    return bool(getattr(torch.ops.mkldnn, names[-1])())


def joined(linears: list[nn.Linear]) -> Packed | Plain:
    """Linear layers over the same input as one: [..., in] -> [..., sum of their outs]. All or none have a bias."""
    weights: list[Tensor] = [linear.weight for linear in linears]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    bias = torch.cat(biases) if biases else None
    return Packed(weight, bias) if packs(weight) else Plain(weight, bias)
