"""From a radiance field and cameras to images, with gradients; deterministic, given a generator or none."""

from field_renderer.renderer import FieldViews, Sampling, render

__all__ = ["FieldViews", "Sampling", "render"]
