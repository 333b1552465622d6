"""Classifier Score Distillation (Yu et al. 2023)."""

from arguments import CSDParams
from guidance.interface import Draw, Guidance, Residual


class CSDGuidance(Guidance, name="csd"):
    """CSD: s [ε_y + c_n ε_n + c_0 ε_0] with c_n + c_0 = -1 at every step; no noise, and no learned term.

    The weight -c_n of the negative prompt goes linearly between the ends of `csd_negative` over the first `csd_anneal`
    of the run (CVMI-Lab's first stage: 0 to 1; its second: 1 to 0.5). Perp-Neg is reckoned from ε_n at every step, as
    there, whatever its weight. A branch that does not count is not evaluated. CSD has no scale of its own;
    s = `guidance_scale` gives the gradient the size of SDS's, so that regularisers keep their weight (inferred).

    `csd_form: table` is the form of the paper's Table 1 instead, ε_y - λ_s ε_n + s' (ε_y - ε_0) with λ_s = -c_n.
    """

    csd: CSDParams

    def batches(self, views: int) -> set[int]:
        """With and without the third prompt."""
        counts = super().batches(views)
        return counts | {count + views for count in counts}

    def residual(self, draw: Draw) -> Residual:
        return self._of_table_1(draw) if self.csd.csd_form == "table" else self._own(draw)

    def _own(self, draw: Draw) -> Residual:
        weight = self.negative_weight(draw.step)                              # -c_n
        empty, negative = draw.text.rows("empty"), draw.text.rows("negative")
        if weight > 0 or draw.text.negative_weights.shape[1]:
            predicted = self.predict(draw, base=negative, extra=empty if weight < 1 else None)
        else:
            predicted = self.predict(draw, base=empty)                        # ε_n counts nowhere
        toward = 0 if predicted.extra is None else (1 - weight) * (predicted.base - predicted.extra)
        residual = self.guidance_scale(draw.step) * (predicted.direction + toward)   # ε_y - ε_n - c_0 (ε_n - ε_0)
        return Residual(residual, predicted, self.guided(predicted, draw.step))

    def _of_table_1(self, draw: Draw) -> Residual:
        weight = self.negative_weight(draw.step)                              # λ_s
        negative = draw.text.rows("negative") if weight > 0 else None
        predicted = self.predict(draw, base=draw.text.rows("empty"), extra=negative)
        direction, noise_empty = predicted.direction, predicted.base          # ε_y - ε_0
        away = 0 if predicted.extra is None else weight * predicted.extra     # λ_s ε_n
        residual = (1 + self.text_scale(draw.step)) * direction + noise_empty - away
        return Residual(residual, predicted, self.guided(predicted, draw.step))

    def negative_weight(self, step: int) -> float:
        """-c_n at an iteration."""
        first, last = self.csd.csd_negative
        progress = self.schedule.progress(step)
        return first + (last - first) * (min(progress / self.csd.csd_anneal, 1.0))
