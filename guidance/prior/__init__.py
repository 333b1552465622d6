"""The frozen, pretrained models: what the losses need of one, how it is loaded, and how it fits into memory."""

from guidance.prior.protocol import DiffusionPrior

__all__ = ["DiffusionPrior"]
