"""A picture instead of Gaussians."""

from dataclasses import dataclass

from arguments.option import option


@dataclass(frozen=True)
class ImageParams:
    """Text to 2D (representation: image): the picture that is optimised instead of Gaussians."""

    particle: str = option(
        "latent",
        "what is optimised: latents, or pixels through the encoder (artifacts, says prolific_dreamer2d)",
        choices=("latent", "pixel"),
    )
    particles: int = option(1, "pictures made at once, from one prompt", low=1, high=1024)
    steps: int = option(1000, "optimisation steps", unit="steps", low=1, high=10_000_000)
    lr: float = option(0.03, "Adam's learning rate, betas 0.9 and 0.99 (prolific_dreamer2d: 0.03)", above=0)
    picture_interval: int = option(100, "steps between pictures of the process", unit="steps", low=1)
