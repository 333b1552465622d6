"""CUDA graphs on a CPU: what runs while one is recorded is kept, operation by operation with its places in memory.

A replay runs the same operations on the same places, whatever lies there now, and no Python of the program, as a card
does. PyTorch's own `make_graphed_callables` records and replays through these.
"""

import contextlib
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Graph:
    """In the place of `torch.cuda.CUDAGraph`."""

    replays = 0

    def __init__(self):
        self.operations = []

    @torch.no_grad()
    def replay(self):
        Graph.replays += 1
        for func, args, kwargs, results in self.operations:
            again = func(*args, **kwargs)
            for place, value in zip(tree_leaves(results), tree_leaves(again), strict=True):
                if isinstance(place, torch.Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


class Recorder(TorchDispatchMode):
    """In the place of `torch.cuda.graph`: within the block, operations are carried out and kept."""

    def __init__(self, graph, pool=None):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        self.graph.operations.append((func, args, kwargs, results))
        return results


def emulate(monkeypatch):
    """Let CUDA graphs be recorded and replayed here."""
    monkeypatch.setattr(Graph, "replays", 0)
    for name, stand_in in {
        "CUDAGraph": Graph,
        "graph": Recorder,
        "Stream": SimpleNamespace,
        "device": lambda _device: contextlib.nullcontext(),
        "stream": lambda _stream: contextlib.nullcontext(),
        "synchronize": lambda: None,
        "graph_pool_handle": tuple,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
