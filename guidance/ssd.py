"""Stable Score Distillation (Tang, Wang, Wu & Zhang 2023)."""

import torch

from arguments import SSDParams
from guidance.distillation import norms, projection
from guidance.interface import Draw, Guidance, Residual


class SSDGuidance(Guidance, name="ssd"):
    """SSD: s' h above the cut-off, s' h + k (ε_y - r ε) at and below it, with h = ε_y - ε_0.

    r = <ε_y, ε> / <ε, ε> takes the noise out of the mode-seeking term with the least residual, which is then orthogonal
    to ε; k = ‖h‖ / ‖ε_y - r ε‖ gives it the size of h. Both are of each view.

    No code could be found. The three terms and "low guidance" are from the abstract, the projection from the paper's
    Table 1; the cut-off of 300 and k are inferred.
    """

    ssd: SSDParams

    def residual(self, draw: Draw) -> Residual:
        predicted = self.predict(draw)
        disengaging = predicted.direction                                     # h
        _, seeking = projection(draw.noise, predicted.base + disengaging)     # ε_y - r ε
        matched = norms(disengaging) / norms(seeking).clamp_min(1e-12)        # k
        late = (draw.timesteps <= self.ssd.ssd_cutoff).view(-1, 1, 1, 1)
        residual = self.text_scale(draw.step) * disengaging + torch.where(late, matched * seeking, 0.0)
        return Residual(residual, predicted, self.guided(predicted, draw.step))
