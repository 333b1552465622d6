"""The CLIP's stage: images against true captions among false ones, coarse to fine."""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel, CLIPTokenizer

from toybox import world
from toybox.models import PIXEL_MEAN, PIXEL_STD, tokenize
from toybox.train_loop import Average, Budget, Loop
from toybox.train_views import COLOURS, Views, jitter, pair_captions

BATCH, RATE = 64, 1e-3
_JITTER_FROM = 0.4
_KEPT_PATCHES, _ALL_PATCHES_FROM = 40, 0.8
_VIEWED_PAIRS = 16
_FIRST_SCALE, _MOST_SCALE = 3.0, 4.6  # logarithms of the logit scale, 20 at first and 100 at most


def train(
    clip: CLIPModel,
    tokenizer: CLIPTokenizer,
    views: Views,
    budget: Budget,
    checkpoint: Path,
    text_tower: dict[str, Tensor] | None = None,
) -> Loop:
    """Train in place; the averaged weights are in `clip` afterwards.

    Where `text_tower` is given, the state of a text tower that a U-Net has learnt, the rest is trained around it.
    """
    captions = Captions(tokenizer, views.device)
    loop = Loop("clip", clip, RATE, budget, checkpoint)
    generator = loop.generator
    if text_tower is not None:
        clip.text_model.load_state_dict(text_tower)
        clip.text_model.requires_grad_(False)
    if loop.step == 0:
        captions.spread(clip)
        loop.average = Average(clip, loop.average.decay)

    def loss() -> Tensor:
        chosen = torch.randint(len(views), (BATCH,), generator=generator)
        images = views.pixels(chosen)
        if loop.progress > _JITTER_FROM:
            images = jitter(images, generator)
        kept = _KEPT_PATCHES if loop.progress < _ALL_PATCHES_FROM else None
        classes = (views.object[chosen], views.colour[chosen], views.view[chosen])
        return captions.loss(clip, image_vectors(clip, images, kept), *classes)

    loop.run(loss)
    loop.average.copy_to(clip)
    return loop


class Captions:
    """Token ids of every caption: of the pairs, of the pairs with each view word, and of one property alone."""

    def __init__(self, tokenizer: CLIPTokenizer, device: torch.device | str) -> None:
        objects = [f"a {name}" for name in world.OBJECTS]
        colours = [f"a {colour} object" for colour in COLOURS]
        views = [f"{view} view" for view in world.VIEWS]
        self.pairs = _trimmed(tokenizer, pair_captions()).to(device)
        self.views = torch.stack([_trimmed(tokenizer, pair_captions(view)) for view in world.VIEWS], 1).to(
            device
        )
        self.properties = _trimmed(tokenizer, objects + colours + views).to(device)

    @torch.no_grad()
    def spread(self, clip: CLIPModel) -> None:
        """Start the text projection with orthogonal directions for the objects, the colours, and the view words.

        A caption becomes the sum of its words' directions, by least squares. A text tower alone keeps captions that
        differ in one word close together for long, and the image tower learns no more than they can tell.
        """
        kinds, paints, words = len(world.OBJECTS), len(COLOURS), len(world.VIEWS)
        code = torch.eye(kinds + paints + words, clip.config.projection_dim, device=self.pairs.device)
        objects, colours, views = code.split((kinds, paints, words))
        pairs = (objects[:, None] + colours).flatten(0, 1)
        texts = (self.properties, self.pairs, self.views.flatten(0, 1))
        pooled = torch.cat([clip.text_model(tokens).pooler_output for tokens in texts])
        target = torch.cat((code, pairs, (pairs[:, None] + views).flatten(0, 1)))
        ridge = 1e-3 * torch.eye(pooled.shape[1], device=pooled.device)
        solution = torch.linalg.solve(pooled.T @ pooled + ridge, pooled.T @ target)
        clip.text_projection.weight.copy_(solution.T)
        clip.logit_scale.fill_(_FIRST_SCALE)

    def loss(
        self,
        clip: CLIPModel,
        images: Float[Tensor, "B D"],
        objects: Int[Tensor, " B"],
        colours: Int[Tensor, " B"],
        views: Int[Tensor, " B"],
    ) -> Tensor:
        """Cross-entropies, for unit vectors of images, of object, colour, view, pair, and view given the pair.

        The first 16 images' view captions stand against each other both ways too. A caption is offered once however
        many images it is true of, and counts as true for each of them.
        """
        with torch.no_grad():
            clip.logit_scale.clamp_(max=_MOST_SCALE)
        scaled = clip.logit_scale.exp() * images
        of_property = scaled @ text_vectors(clip, self.properties).T
        sizes = (len(world.OBJECTS), len(COLOURS), len(world.VIEWS))
        of_object, of_colour, of_view = of_property.split(sizes, dim=1)
        pair = objects * len(COLOURS) + colours
        pairs, place = torch.unique(pair, return_inverse=True)
        of_pair = scaled @ text_vectors(clip, self.pairs[pairs]).T
        few, few_place = torch.unique(pair[:_VIEWED_PAIRS], return_inverse=True)
        few_views = views[:_VIEWED_PAIRS]
        of_both = scaled[:_VIEWED_PAIRS] @ text_vectors(clip, self.views[few].flatten(0, 1)).T
        rows = torch.arange(len(few_views), device=images.device)
        given_pair = of_both.unflatten(1, (-1, 3))[rows, few_place]
        fine = 3 * few_place + few_views
        return (
            functional.cross_entropy(of_object, objects)
            + functional.cross_entropy(of_colour, colours)
            + functional.cross_entropy(of_view, views)
            + functional.cross_entropy(of_pair, place)
            + _caption_to_images(of_pair, place)
            + functional.cross_entropy(given_pair, few_views)
            + functional.cross_entropy(of_both, fine)
            + _caption_to_images(of_both, fine)
        )


def _caption_to_images(logits: Float[Tensor, "B C"], fine: Int[Tensor, " B"]) -> Tensor:
    """Cross-entropy of each present caption over the images, its target shared by all images that it is true of."""
    present, place = torch.unique(fine, return_inverse=True)
    true = functional.one_hot(place, len(present)).float()
    return functional.cross_entropy(logits[:, present].T, (true / true.sum(0)).T)


def _trimmed(tokenizer: CLIPTokenizer, captions: list[str]) -> Int[Tensor, "N L"]:
    """Token ids without the padding that all captions share, which the pooling skips."""
    longest = max(len(ids) for ids in tokenizer(captions).input_ids)
    return tokenize(tokenizer, captions)[:, :longest]


def image_vectors(
    clip: CLIPModel, images: Float[Tensor, "B 3 S S"], kept: int | None = None
) -> Float[Tensor, "B D"]:
    """Unit vectors of images in [0, 1], from all patches or from the `kept` patches of most contrast."""
    mean = torch.tensor(PIXEL_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(PIXEL_STD, device=images.device).view(1, 3, 1, 1)
    tower = clip.vision_model
    tokens = tower.embeddings((images - mean) / std)
    if kept is not None:
        size = clip.config.vision_config.patch_size
        contrast = functional.avg_pool2d(images.square(), size) - functional.avg_pool2d(images, size).square()
        chosen = 1 + contrast.sum(1).flatten(1).topk(kept, sorted=False).indices
        patches = tokens.gather(1, chosen[:, :, None].expand(-1, -1, tokens.shape[-1]))
        tokens = torch.cat((tokens[:, :1], patches), dim=1)
    hidden = tower.encoder(inputs_embeds=tower.pre_layrnorm(tokens)).last_hidden_state
    return functional.normalize(clip.visual_projection(tower.post_layernorm(hidden[:, 0])), dim=-1)


def text_vectors(clip: CLIPModel, tokens: Int[Tensor, "N L"]) -> Float[Tensor, "N D"]:
    """Unit vectors of token ids; padding may be cut off, since attention is causal."""
    pooled = clip.text_model(tokens).pooler_output
    return functional.normalize(clip.text_projection(pooled), dim=-1)
