"""Distances to the nearest neighbours of a point cloud."""
