"""`distCUDA2`, under the name that the field's code imports; it runs wherever the points are."""

import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor

NEIGHBORS = 3


@torch.no_grad()
def distCUDA2(points: Float[Tensor, "P 3"]) -> Float[Tensor, "P"]:
    """Mean of the squared distances from each point to its three nearest other points."""
    distances, _ = cKDTree(points.double().numpy()).query(points.double().numpy(), k=4)
    return torch.from_numpy((distances[:, 1:] ** 2).mean(1)).to(points.dtype)
