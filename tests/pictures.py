"""Pictures whose truth is known: exact views of the toybox's objects."""

import torch

from toybox import raycast, world
from toybox.objects import solids
from toybox.recognition import parse_caption


def true_pictures(prompt, cameras, size):
    """What the prompt names, before white."""
    name, colour = parse_caption(prompt)
    places = (cameras.azimuth_deg, cameras.polar_deg, cameras.radius, cameras.fov_x)
    seen = raycast.cast(solids(name), raycast.Cameras.orbit(*(each.double() for each in places)), size)
    return seen.picture(torch.tensor([world.COLOURS[colour]]), torch.ones(3, 1, 1))
