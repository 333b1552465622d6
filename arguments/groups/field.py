"""A radiance field instead of Gaussians."""

from dataclasses import dataclass

from arguments.option import option


@dataclass(frozen=True)
class FieldParams:
    """A radiance field instead of Gaussians (representation: grid or hash). Its renders are squares of image_w."""

    bound: float = option(1.0, "half the side of the cube that holds the field", unit="world units", above=0)
    density_scale: float = option(1.0, "factor on the softplus that makes the density", above=0)
    blob_scale: float = option(10.0, "height of the start density before the softplus (Magic3D: 10)", low=0)
    blob_std: float = option(
        0.5, "radius of the start sphere, where that is 0 (Magic3D: 0.5)", unit="world units", above=0
    )
    resolution: int = option(64, "grid: vertices a side at the start", low=2, high=4096)
    resolution_final: int = option(128, "grid: and at the end", low=2, high=4096)
    growths: int = option(2, "grid: times that it grows, evenly up to grow_until", low=0, high=100)
    grow_until: float = option(0.5, "grid: share of the run at which it is full grown", low=0, high=1)
    hash_levels: int = option(16, "hash: levels (Instant-NGP: 16)", low=1, high=32)
    hash_features: int = option(2, "hash: features of a level (Instant-NGP: 2)", low=1, high=16)
    hash_table: int = option(19, "hash: rows of a level's table, as a power of 2", low=4, high=24)
    hash_base: int = option(16, "hash: cells a side of the coarsest level", low=1, high=4096)
    hash_finest: int = option(2048, "hash: cells a side of the finest level", low=1, high=1_000_000)
    hash_smoothstep: bool = option(True, "hash: smoothstep weights, as ProlificDreamer; else linear ones")
    hash_start_levels: int = option(
        0, "hash: levels in use at the start; 0: all (threestudio's DreamFusion: 8)", low=0, high=32
    )
    hash_level_iter: tuple[float, float] = option(
        (2000, 500), "hash: step of the next level, and steps between those after it", unit="steps", low=1
    )
    hash_width: int = option(64, "hash: width of the network's hidden layers", low=1, high=1024)
    hash_layers: int = option(1, "hash: its hidden layers; 0: one linear map", low=0, high=8)
    samples: int = option(64, "samples of a ray, evenly between its ends", low=1, high=4096)
    importance_samples: int = option(0, "further samples, drawn by the weights of those", low=0, high=4096)
    early_width: int | None = option(
        None, "width of the training renders at first; none: image_w", unit="px", low=16, high=8192
    )
    early_iter: int = option(
        5000,
        "steps for which it is that (threestudio's ProlificDreamer: 64 px for 5000)",
        unit="steps",
        low=0,
    )
    occupancy_resolution: int = option(32, "cells a side of the grid that tells empty space", low=2, high=512)
    occupancy_interval: int = option(
        16, "steps between its updates (Instant-NGP: 16); 0: nothing is skipped", unit="steps", low=0
    )
    occupancy_threshold: float = option(
        0.01, "density below which space is empty", unit="per world unit", low=0
    )
    mesh_density: float = option(
        10.0, "density of the surface that mesh.ply shows", unit="per world unit", above=0
    )
    ray_chunk: int | None = option(
        None, "rays at a time, each rendered twice; none: as many as the memory plan holds", low=1
    )
    optimizer: str = option(
        "adam", "betas 0.9 and 0.99, eps 1e-15 for all", choices=("adam", "adamw", "adamax")
    )
    field_lr: float = option(0.01, "learning rate of the grid or the tables at the start", above=0)
    field_lr_final: float = option(0.01, "and at the end, reached exponentially", above=0)
    network_lr: float = option(0.001, "hash: learning rate of the network", above=0)
    ramp_iter: tuple[float, float] = option(
        (0, 0),
        "steps over which the weights below go from their first value to their second",
        unit="steps",
        low=0,
    )
    lambda_sparsity: tuple[float, float] = option(
        (0.0, 0.0), "weight of √(α² + 0.01), a pixel (threestudio)", low=0
    )
    lambda_opaque: tuple[float, float] = option(
        (0.0, 0.0), "weight of the entropy of α, a pixel (threestudio)", low=0
    )
    lambda_orient: tuple[float, float] = option(
        (0.0, 0.0), "weight of surfaces that look away (Ref-NeRF); costs four times the density", low=0
    )
    lambda_z_variance: tuple[float, float] = option(
        (0.0, 0.0), "weight of the variance of the distance along opaque rays (HiFA)", low=0
    )
    lambda_emptiness: tuple[float, float] = option(
        (0.0, 0.0), "weight of log(1 + 10 w), a sample (SJC)", low=0
    )
    lambda_smooth: tuple[float, float] = option(
        (0.0, 0.0), "weight of the total variation of the grid or the tables", low=0
    )
