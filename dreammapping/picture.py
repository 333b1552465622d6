"""Pictures as what is optimised: text to 2D on the same guidance (the paper's figures 10 and 14)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arguments import Config
from dreammapping.subject import Shown, Subject
from guidance.noise import standard_normal_like
from guidance.prior.score_model import ScoreModel
from guidance.prompts import ViewPrompts
from utils.distributed import own, share
from utils.errors import UserError
from utils.images import grid, write_picture
from utils.optimizers import fused_on_card, load_moments


class Picture(Subject):
    """One picture, or several from one prompt: latents, or pixels that pass through the prior's encoder.

    Args:
        load_prior: gives the diffusion model, whose text tower encodes the prompt.

    Raises:
        UserError: the prompt cannot be used.
    """

    replicas = True

    def __init__(
        self,
        config: Config,
        load_prior: Callable[[], ScoreModel],
        rng: torch.Generator,
        device: torch.device,  # noqa: ARG002 - the prior's
    ) -> None:
        self.config, self.prior = config, load_prior()
        self.prompts = ViewPrompts(self.prior, config.GuidanceParams, views=False)
        self.prior.drop_text_encoder()
        self.views = share(config.ImageParams.particles, "ImageParams.particles")
        self.particles = nn.Parameter(initial_particles(config, self.prior, rng))
        options = {"betas": (0.9, 0.99), **fused_on_card(self.particles.device)}
        self.optimizer = torch.optim.Adam([self.particles], lr=config.ImageParams.lr, **options)

    @property
    def latent(self) -> bool:
        """Whether the particles are latents."""
        return self.config.ImageParams.particle == "latent"

    def show(self, step: int, rng: torch.Generator) -> Shown:  # noqa: ARG002 - always all of it
        return Shown(own(self.particles), self.prompts(torch.zeros(self.views)), latent=self.latent)

    @torch.no_grad()
    def images(self) -> Float[Tensor, "B 3 H W"]:
        """The particles as pictures in [0, 1]."""
        return (
            self.prior.decode_latents(self.particles) if self.latent else self.particles.detach().clamp(0, 1)
        )

    def pictures(self) -> dict[str, Float[Tensor, "B _ H W"]]:
        return {"image": own(self.images())}

    def save(self, folder: Path, step: int) -> Path:  # noqa: ARG002 - the newest is kept
        """`picture.png`: all particles side by side."""
        write_picture(folder / "picture.png", grid([self.images()]))
        return folder / "picture.png"

    def check(self, folder: Path, step: int) -> None:
        if not self.images().isfinite().all():
            raise UserError(
                f"{folder / 'picture.png'}: expected finite colours, got NaN or infinity; start anew with a lower "
                "guidance_scale or ImageParams.lr, or precision=float32"
            )
        if not (folder / "picture.png").is_file():
            self.save(folder, step)

    def state_dict(self) -> dict[str, Any]:
        return {"particles": self.particles.detach(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self.particles.copy_(state["particles"])
        load_moments(self.optimizer, state["optimizer"])

    def numbers(self) -> dict[str, int]:
        return {"particles": len(self.particles)}

    def savings(self) -> list[str]:
        count = len(self.particles)
        return [f"fewer ImageParams.particles (now {count})"] if count > 1 else []


def initial_particles(config: Config, prior: ScoreModel, rng: torch.Generator) -> Float[Tensor, "B _ _ _"]:
    """Standard normal latents, or uniform pixels."""
    count = config.ImageParams.particles
    if config.ImageParams.particle == "pixel":
        return torch.rand(count, 3, *prior.image_size, generator=rng).to(prior.device)
    shape = torch.empty(count, prior.latent_channels, *prior.latent_size, device=prior.device)
    return standard_normal_like(shape, rng)
