"""`python -m dreammapping export`: a run's Gaussians in the formats of viewers and engines."""
