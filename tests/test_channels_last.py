"""Concatenations of images by channels, in the layout of their memory."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import fx

from guidance.prior.channels_last import backend, join_last
from tests.tolerances import NETWORK

ROOT = Path(__file__).parents[1]


def traced(function, *inputs):
    """A graph that knows its values, as PyTorch's compiler hands it to a backend."""
    graph = fx.symbolic_trace(function)
    for node, value in zip(graph.graph.find_nodes(op="placeholder"), inputs, strict=True):
        node.meta["example_value"] = value
    return graph


def joined_by(graph):
    return [
        node.args[1:] or node.kwargs for node in graph.graph.find_nodes(op="call_function", target=torch.cat)
    ]


@pytest.mark.parametrize(
    "function",
    [lambda a, b: torch.cat([a, b], 1), lambda a, b: torch.cat(tensors=(a, b, a), dim=1).square() + a.mean()],
    ids=["positions", "names"],
)
def test_images_are_joined_by_the_last_dimension_and_stay_the_same(function):
    first, second = (torch.randn(2, each, 3, 5).to(memory_format=torch.channels_last) for each in (4, 7))
    graph = join_last(traced(function, first, second))
    found = graph(first, second)
    assert torch.equal(found, function(first, second)) and found.is_contiguous(
        memory_format=torch.channels_last
    )
    assert joined_by(graph) == [(3,)]


@pytest.mark.parametrize(
    ("function", "shape", "known"),
    [
        (lambda a, b: torch.cat([a, b]), (2, 4, 3, 5), True),
        (lambda a, b: torch.cat([a, b], 1), (2, 4, 6), True),
        (lambda a, b: torch.cat([a, b], 1), (2, 4, 3, 5), False),
    ],
    ids=["batches", "words", "unknown"],
)
def test_other_concatenations_are_left_alone(function, shape, known):
    first, second = torch.randn(2, *shape)
    graph = traced(function, first if known else None, second)
    before = joined_by(graph)
    assert joined_by(join_last(graph)) == before
    assert torch.equal(graph(first, second), function(first, second))


def test_a_backend_is_the_same_function_for_the_same_settings():
    """By which PyTorch finds again what it compiled for an earlier run."""
    assert backend() is backend() is not backend(trained=True) is backend(trained=True)


UP = """
import re
import torch
from torch import nn
from torch._inductor.utils import run_and_get_code
from guidance.prior.channels_last import backend

class Up(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend, self.first = nn.Linear(8, 8), nn.Conv2d(8, 8, 3)
        self.shrink, self.last = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1)

    def attended(self, images):
        images = self.first(images)
        rows = self.attend(images.permute(0, 2, 3, 1).flatten(1, 2))
        return rows.view(2, 6, 5, 8).permute(0, 3, 1, 2).contiguous() + images

    def forward(self, images, skipped):
        joined = torch.cat([self.attended(images), self.attended(skipped)], 1)
        return self.last(joined * joined.mean((2, 3), keepdim=True)) + self.shrink(joined)

torch.manual_seed(0)
up = Up().to(memory_format=torch.channels_last).requires_grad_(False)
images = torch.randn(2, 2, 8, 8, 7)
expected = up(*images)
up.compile(backend=backend())
found, codes = run_and_get_code(lambda: up(*images))
shapes = re.findall(r"empty_strided_cpu\\(\\((2, .*?)\\), \\((.*?)\\)", "".join(codes))
print(float((found - expected).norm() / expected.norm()), *shapes, sep="|")
"""


@pytest.mark.skipif(not shutil.which("g++"), reason="PyTorch compiles for a CPU with g++")
def test_what_joins_attentions_images_lies_as_they_do():
    """As a U-Net's way up does. In a process of its own: the tests' checks of shapes would be in between."""
    printed = subprocess.run(
        [sys.executable, "-c", UP], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    distance, *shapes = printed.strip().split("|")
    assert float(distance) < NETWORK[torch.float32]
    assert "('2, 6, 5, 16', '480, 80, 16, 1')" in shapes and not any(
        "480, 30, 5, 1" in each for each in shapes
    )
