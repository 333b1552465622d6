"""How well pictures fit a text: the CLIP score and R-precision, view by view.

Vectors of images are those of the encoder that is given, so that each picture is read once.
"""

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from dreammapping.evaluation.encoders import Encoder


def clip_scores(vectors: Float[Tensor, "V D"], prompt: str, encoder: Encoder) -> Float[Tensor, " V"]:
    """100 times the cosine of each image and the prompt. Their mean is the CLIP score (Hessel et al. 2021).

    A negative mean stays negative, where torchmetrics' `CLIPScore` shows 0.

    Raises:
        UserError: the encoder cannot read a prompt that long.
    """
    return 100.0 * (vectors @ encoder.embed_texts([prompt])[0])


def are_retrieved(
    vectors: Float[Tensor, "V D"], prompt: str, captions: Sequence[str], encoder: Encoder
) -> Bool[Tensor, " V"]:
    """For each image, whether of all captions its own prompt is the nearest: their share is R-precision.

    Args:
        captions: what it could be mistaken for; whether the prompt is among them makes no difference.

    Raises:
        UserError: the encoder cannot read a text that long.
    """
    others = [caption for caption in dict.fromkeys(captions) if caption != prompt]
    own, *_ = similarities = (vectors @ encoder.embed_texts([prompt, *others]).T).T
    return (own >= similarities).all(dim=0)
