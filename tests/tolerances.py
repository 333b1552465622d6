"""How far two right computations of one number may lie apart: from its type and the operation, from no machine.

Another processor adds in another order, and rounds or does not round in between. So a tolerance counts roundings.
Each is wrong by up to half of `eps`, and errors of many that know nothing of each other grow like the root of their
number.
"""

import torch

EPS = {
    dtype: torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}

FORMULA = {dtype: 64 * eps for dtype, eps in EPS.items()}
"""Relative, of a formula of up to 64 roundings, all to the same side; 7.6e-6 in float32."""

SUM = {dtype: 256 * eps for dtype, eps in EPS.items()}
"""Relative to the largest term, of sums and products of matrices with up to 2^16 terms; 3.1e-5 in float32."""

NETWORK = {dtype: 32 * eps + 1024 * EPS[torch.float32] for dtype, eps in EPS.items()} | {
    torch.float64: 1024 * EPS[torch.float64]
}
"""Relative in the norm, of a network's output and gradient: up to 2^10 tensors in a row are rounded to the type, which
gives its root times `eps`. Between them sums of up to 2^10 terms are rounded to float32 each, by every processor that
computes with half types, which gives the root of 2^20 times float32's. float32: 1.3e-4; float16: 0.031; bfloat16: 0.25.
A branch, a weight or a view that is missing changes a gradient by a third and more.
"""

POOLED = {dtype: 1 / 16 + tolerance for dtype, tolerance in NETWORK.items()}
"""Relative in the norm, of the gradient of a network with maxima in it, such as the degradation operator. Where the two
largest values of a window lie within rounding of each other, the gradient goes to the other one: as much as one of the
256 or more windows of a level bears, which is the root of that of the norm.
"""


def same(left, right):
    """Whether two states, with dictionaries, lists and tensors in them, are equal to the bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right
