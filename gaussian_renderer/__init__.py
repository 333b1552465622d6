"""From Gaussians and cameras to images, with gradients; deterministic, nothing is sampled inside."""

from gaussian_renderer.renderer import Views, disparity, render, usable

__all__ = ["Views", "disparity", "render", "usable"]
