"""The toybox's CLIP: images and captions to unit vectors, whose inner product is their similarity."""

import json
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from utils.errors import UserError

PRIOR = Path(__file__).resolve().parent / "prior"


class Clip:
    """A `transformers` CLIP of any size, with the pixel normalisation that its folder names."""

    def __init__(self, model: torch.nn.Module, tokenizer, mean: list[float], std: list[float]) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.device = next(model.parameters()).device
        self.image_size: int = model.config.vision_config.image_size
        self.text_length: int = model.config.text_config.max_position_embeddings
        self._mean = torch.tensor(mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=self.device).view(1, 3, 1, 1)

    @classmethod
    def from_pretrained(cls, folder: Path = PRIOR / "clip", device: torch.device | str = "cpu") -> "Clip":
        """Load from a local folder.

        Raises:
            UserError: the folder does not hold a CLIP.
        """
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{folder}: expected the toybox's CLIP, found none; restore the folder from the repository, "
                "or make it with `python -m toybox.train`"
            )
        from transformers import CLIPModel, CLIPTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            pixels = json.loads(_preprocessor(folder).read_text(encoding="utf-8"))
            pixels = pixels.get("image_processor", pixels)
            model = CLIPModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            return cls(model.to(device), tokenizer, pixels["image_mean"], pixels["image_std"])
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{folder}: expected a CLIP, got files that fail to load ({reason})") from error

    @torch.inference_mode()
    def embed_images(self, images: Float[Tensor, "V 3 H W"], batch: int = 32) -> Float[Tensor, "V D"]:
        """Unit vectors of images in [0, 1] (clamped), of any size (resized to the model's own)."""
        vectors = []
        for chunk in images.split(batch):
            pixels = chunk.to(self.device, torch.float32).clamp(0.0, 1.0)
            if pixels.shape[-2:] != (self.image_size, self.image_size):
                size = (self.image_size, self.image_size)
                pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0.0, 1.0)
            output = self.model.vision_model((pixels - self._mean) / self._std)
            vectors.append(self.model.visual_projection(output.pooler_output))
        return F.normalize(torch.cat(vectors), dim=-1)

    @torch.inference_mode()
    def embed_texts(self, texts: list[str], batch: int = 256) -> Float[Tensor, "N D"]:
        """Unit vectors of captions.

        Raises:
            UserError: a text is longer than the text tower reads.
        """
        for text in texts:
            excess = len(self.tokenizer(text).input_ids) - self.text_length
            if excess > 0:
                raise UserError(
                    f"prompt: CLIP reads {self.text_length} tokens, got {excess} more; "
                    f"shorten the prompt: {text!r}"
                )
        vectors = []
        for start in range(0, len(texts), batch):
            tokens = self.tokenizer(
                texts[start : start + batch],
                padding="max_length",
                max_length=self.text_length,
                return_tensors="pt",
            ).to(self.device)
            output = self.model.text_model(input_ids=tokens.input_ids)
            vectors.append(self.model.text_projection(output.pooler_output))
        return F.normalize(torch.cat(vectors), dim=-1)


def _preprocessor(folder: Path) -> Path:
    """Where `transformers` 4 or 5 wrote the pixel normalisation."""
    path = folder / "preprocessor_config.json"
    return path if path.is_file() else folder / "processor_config.json"
