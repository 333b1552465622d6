"""Compiling networks whose memory is channels-last, so that it stays so, and half precision half."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

RECOMPUTED = {"realize_opcount_threshold": 200, "realize_reads_threshold": 12}
"""Of Inductor: up to how many operations and reads it computes a value again for each of its readers. By its own
limits the gradient of SiLU, which the sums and the result of a group norm's backward pass both read, goes through
memory in float32."""


@functools.cache  # PyTorch finds again what it compiled for the same function
def backend(*, searched: bool = False, trained: bool = False) -> Callable[[GraphModule, Sequence[Any]], Any]:
    """A backend for `torch.compile`: PyTorch's own, Inductor, behind `join_last`.

    Args:
        searched: its searching mode, without CUDA graphs.
        trained: gradients are taken through the network, and `RECOMPUTED` holds.
    """

    def compile_(graph: GraphModule, inputs: Sequence[Any]) -> Any:
        from torch._inductor import list_mode_options
        from torch._inductor.compile_fx import compile_fx

        options = list_mode_options("max-autotune-no-cudagraphs") if searched else {}
        return compile_fx(
            join_last(graph), inputs, config_patches={**options, **(RECOMPUTED if trained else {})}
        )

    return compile_


def join_last(graph: GraphModule) -> GraphModule:
    """Let every concatenation of images by channels be one by the last dimension, as they lie in memory; in place.

    Where an input comes from an attention, Inductor else lays the whole out with channels first: a U-Net's skip
    connections are then written, and read by the convolution behind, in fragments of 2 bytes.
    """
    for node in graph.graph.find_nodes(op="call_function", target=torch.cat):
        parts, dim = _arguments(node)
        if dim != 1 or not all(_is_image(part) for part in parts):
            continue
        with graph.graph.inserting_before(node):
            rows = [graph.graph.call_function(torch.permute, (part, (0, 2, 3, 1))) for part in parts]
            joined = graph.graph.call_function(torch.cat, (rows, 3))
            node.replace_all_uses_with(graph.graph.call_function(torch.permute, (joined, (0, 3, 1, 2))))
        graph.graph.erase_node(node)
    graph.recompile()
    return graph


def _arguments(node: Node) -> tuple[Sequence[Any], Any]:
    def parts_and_dim(tensors: Any, dim: Any = 0) -> tuple[Any, Any]:
        return tensors, dim

    return parts_and_dim(*node.args, **node.kwargs)


def _is_image(part: Any) -> bool:
    """Whether it is known to be B C H W."""
    seen = part.meta.get("example_value") if isinstance(part, Node) else None
    return isinstance(seen, Tensor) and seen.dim() == 4
