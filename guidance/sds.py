"""Score Distillation Sampling (DreamFusion, Poole et al. 2022): the baseline."""

from guidance.interface import Draw, Guidance, Residual


class SDSGuidance(Guidance, name="sds"):
    """SDS (Eq. 9): the residual is the guided prediction minus the very noise that made x_t."""

    def residual(self, draw: Draw) -> Residual:
        predicted = self.predict(draw)                         # ε_φ(x_t, t, ·)
        guided_noise = self.guided(predicted, draw.step)       # ε_φ^CFG, Eq. 4
        return Residual(guided_noise - draw.noise, predicted, guided_noise)    # Eq. 9
