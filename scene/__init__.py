"""The world: Gaussians, their optimiser and density control, cameras, initial shapes, and the PLY format.

Right-handed frame, z up, the front of an object faces +y, and an object spans about -0.5 to 0.5.
"""
