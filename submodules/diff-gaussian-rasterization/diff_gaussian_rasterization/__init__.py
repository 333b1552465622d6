"""Differentiable rasterization of 3D Gaussians: colour, depth and alpha, one camera or a batch of them."""

from diff_gaussian_rasterization.batch import rasterize
from diff_gaussian_rasterization.classic import GaussianRasterizationSettings, GaussianRasterizer
from diff_gaussian_rasterization.cpu import available as cpu_kernel_available
from diff_gaussian_rasterization.cpu import get_num_threads, set_num_threads

__all__ = [
    "GaussianRasterizationSettings",
    "GaussianRasterizer",
    "cpu_kernel_available",
    "get_num_threads",
    "rasterize",
    "set_num_threads",
]
