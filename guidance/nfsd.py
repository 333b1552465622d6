"""Noise-Free Score Distillation (Katzir et al. 2023)."""

from arguments import NFSDParams
from guidance.interface import Draw, Guidance, Residual


class NFSDGuidance(Guidance, name="nfsd"):
    """NFSD: d_D + s d_C, with d_C = ε_y - ε_0 and d_D = ε_0 below t = 200, ε_0 - ε_n from there on.

    ε_n is the negative prompt's, which NFSD takes for what is bad in a render; it is evaluated from the cut-off on
    only. The authors' negative prompt: "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark,
    low-resolution, gloomy". The authors released no code; the form is that of the paper's text and of three
    re-implementations that agree.
    """

    nfsd: NFSDParams

    def batches(self, views: int) -> set[int]:
        """Beside those of every method the negative prompt, for the views with a t from the cut-off on."""
        return {count + noisy for count in super().batches(views) for noisy in range(views + 1)}

    def residual(self, draw: Draw) -> Residual:
        cutoff = self.nfsd.nfsd_cutoff
        predicted = self.predict(
            draw,
            base=draw.text.rows("empty"),
            extra=draw.text.rows("negative"),
            extra_views=draw.host_timesteps >= cutoff,
        )
        noisy = (draw.timesteps >= cutoff).view(-1, 1, 1, 1)
        removed = noisy * predicted.extra                                     # ε_n, or nothing
        denoising = predicted.base - removed                                  # d_D
        guided_noise = self.guided(predicted, draw.step)
        scale = self.text_scale(draw.step) + 1                                # s
        return Residual(denoising + scale * predicted.direction, predicted, guided_noise)
