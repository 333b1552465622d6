"""The CLIP's stage: images against true captions among false ones, coarse to fine."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from toybox import world
from toybox.models import PIXEL_MEAN, PIXEL_STD, tokenize
from toybox.speed import fastest, half
from toybox.train_loop import Average, Budget, Loop
from toybox.train_views import COLOURS, Source, jitter, pair_captions, recolour

_JITTER_FROM = 0.3
_KEPT_SHARE, _ALL_PATCHES_FROM = 0.625, 0.7
_FIRST_SCALE, _MOST_SCALE = 3.0, 4.6  # logarithms of the logit scale, 20 at first and 100 at most
_PROBES = 2048


@dataclass(frozen=True)
class Settings:
    """How the CLIP is trained."""

    batch: int
    rate: float
    decay: float
    """Of the running average of the weights."""
    sparse: bool
    """See the patches of most contrast alone for the first 70 % of the time."""
    renders_every: int
    """Steps between two renewals of the renders."""
    half: bool
    compiled: bool


def train(
    clip: CLIPModel,
    tokenizer: CLIPTokenizer,
    source: Source,
    settings: Settings,
    budget: Budget,
    checkpoint: Path,
    start: CLIPModel | None = None,
) -> Loop:
    """Train in place; the averaged weights are in `clip` afterwards. The text tower is locked (`keep_words_apart`).

    Where `start` is given, an earlier CLIP of this architecture, its image tower is trained further.
    """
    captions = Captions(clip, tokenizer)
    loop = Loop("clip", clip, settings.rate, budget, checkpoint, settings.decay)
    generator = loop.generator
    if loop.step == 0:
        captions.spread(clip)
        if start is not None:
            clip.vision_model.load_state_dict(start.vision_model.state_dict())
            _meet(clip, captions, source, generator)
        loop.average = Average(clip, loop.average.decay)
    recoloured = settings.batch // 2
    patches = (clip.config.vision_config.image_size // clip.config.vision_config.patch_size) ** 2
    sparse = int(_KEPT_SHARE * patches) if settings.sparse else None

    def loss_of(states: Callable, rough: bool, kept: int | None) -> Tensor:
        batch = source.draw(settings.batch, generator)
        images = jitter(batch.images, generator) if rough else batch.images
        images = torch.cat((recolour(images[:recoloured], generator), images[recoloured:]))
        with half(clip.device, settings.half):
            seen = states(clip, images, kept)
        vectors = F.normalize(clip.visual_projection(seen.float()), dim=-1)
        return captions.loss(clip, vectors, batch.object, batch.colour, batch.view, recoloured)

    def trial(states: Callable) -> None:
        for kept in {sparse, None}:
            loss_of(states, False, kept).backward()
        clip.zero_grad()

    clip.train()
    states = fastest(_image_states, trial, settings.compiled and loop.progress < 1.0, "clip")

    def loss() -> Tensor:
        if loop.step % settings.renders_every == 0:
            source.renew()
        kept = sparse if loop.progress < _ALL_PATCHES_FROM else None
        return loss_of(states, loop.progress > _JITTER_FROM, kept)

    loop.run(loss)
    loop.average.copy_to(clip)
    return loop


class Captions:
    """The locked text tower's states of every caption: of one property, of the pairs, of the pairs with a view word."""

    def __init__(self, clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
        objects = [f"a {name}" for name in world.OBJECTS]
        colours = [f"a {colour} object" for colour in COLOURS]
        views = [f"{view} view" for view in world.VIEWS]

        @torch.no_grad()
        def states(captions: list[str]) -> Float[Tensor, "N D"]:
            tokens = _trimmed(tokenizer, captions).to(clip.device)
            return clip.text_model(tokens).pooler_output

        self.properties = states(objects + colours + views)
        self.pairs = states(pair_captions())
        self.views = torch.stack([states(pair_captions(view)) for view in world.VIEWS], 1)
        names = [(name, colour) for name in world.OBJECTS for colour in COLOURS]
        self.held_out = torch.tensor([pair in world.HELD_OUT for pair in names], device=clip.device)

    @property
    def code(self) -> Float[Tensor, "K K"]:
        """Orthogonal directions for the objects, the colours and the view words, in the order of `properties`."""
        return torch.eye(len(self.properties), device=self.properties.device)

    @torch.no_grad()
    def spread(self, clip: CLIPModel) -> None:
        """Start the text projection with the sum of its words' directions for every caption, by least squares.

        From random weights, captions that differ in one word stay close together for long, and the image tower learns
        no more than they can tell.
        """
        kinds, paints = len(world.OBJECTS), len(COLOURS)
        code = F.pad(self.code, (0, int(clip.config.projection_dim) - len(self.code)))
        objects, colours, views = code.split((kinds, paints, len(world.VIEWS)))
        pairs = (objects[:, None] + colours).flatten(0, 1)
        states = torch.cat((self.properties, self.pairs, self.views.flatten(0, 1)))
        target = torch.cat((code, pairs, (pairs[:, None] + views).flatten(0, 1)))
        clip.text_projection.weight.copy_(_least_squares(states, target).T)
        clip.logit_scale.fill_(_FIRST_SCALE)

    def loss(
        self,
        clip: CLIPModel,
        images: Float[Tensor, "B D"],
        objects: Int[Tensor, " B"],
        colours: Int[Tensor, " B"],
        views: Int[Tensor, " B"],
        recoloured: int = 0,
    ) -> Tensor:
        """Cross-entropies, for unit vectors of images, of object, view, colour, pair, and view given the pair.

        The first `recoloured` images have no colour of a name: they count for object and view alone, which makes these
        independent of the paint. Held-out pairs are no false captions: an image tower taught that they never come true
        would not find them.
        """
        with torch.no_grad():
            clip.logit_scale.clamp_(max=_MOST_SCALE)
        scaled = clip.logit_scale.exp() * images
        of_property = scaled @ text_vectors(clip, self.properties).T
        sizes = (len(world.OBJECTS), len(COLOURS), len(world.VIEWS))
        of_object, of_colour, of_view = of_property.split(sizes, dim=1)
        true = slice(recoloured, None)
        pair = (objects * len(COLOURS) + colours)[true]
        of_pair = scaled[true] @ text_vectors(clip, self.pairs).T
        of_pair = of_pair.masked_fill(self.held_out, -torch.inf)
        given_pair = torch.einsum("bd,bvd->bv", scaled[true], text_vectors(clip, self.views[pair]))
        return (
            F.cross_entropy(of_object, objects)
            + F.cross_entropy(of_view, views)
            + F.cross_entropy(of_colour[true], colours[true])
            + F.cross_entropy(of_pair, pair)
            + F.cross_entropy(given_pair, views[true])
        )


@torch.no_grad()
def _meet(clip: CLIPModel, captions: Captions, source: Source, generator: torch.Generator) -> None:
    """Fit the visual projection of a trained image tower to the code of the captions, by least squares."""
    objects, colours, words = captions.code.split((len(world.OBJECTS), len(COLOURS), len(world.VIEWS)))
    seen, targets = [], []
    left = min(_PROBES, 8 * len(source))
    while left > 0:
        batch = source.draw(min(left, 128), generator)
        seen.append(_image_states(clip, batch.images))
        targets.append(objects[batch.object] + colours[batch.colour] + words[batch.view])
        left -= 128
    target = torch.cat(targets)
    target = F.pad(target, (0, int(clip.config.projection_dim) - target.shape[1]))
    clip.visual_projection.weight.copy_(_least_squares(torch.cat(seen), target).T)


def _least_squares(states: Float[Tensor, "N D"], target: Float[Tensor, "N K"]) -> Float[Tensor, "D K"]:
    """The matrix that maps states to targets, with a little ridge."""
    ridge = 1e-3 * torch.eye(states.shape[1], device=states.device)
    return torch.linalg.solve(states.T @ states + ridge, states.T @ target)


def _trimmed(tokenizer: CLIPTokenizer, captions: list[str]) -> Int[Tensor, "N L"]:
    """Token ids without the padding that all captions share, which the pooling skips."""
    longest = max(len(ids) for ids in tokenizer(captions).input_ids)
    return tokenize(tokenizer, captions)[:, :longest]


def image_vectors(
    clip: CLIPModel, images: Float[Tensor, "B 3 S S"], kept: int | None = None
) -> Float[Tensor, "B D"]:
    """Unit vectors of images in [0, 1], from all patches or from the `kept` patches of most contrast."""
    return F.normalize(clip.visual_projection(_image_states(clip, images, kept)), dim=-1)


def _image_states(
    clip: CLIPModel, images: Float[Tensor, "B 3 S S"], kept: int | None = None
) -> Float[Tensor, "B D"]:
    tower = clip.vision_model
    tokens = tower.embeddings((images - PIXEL_MEAN[0]) / PIXEL_STD[0])
    if kept is not None:
        size = clip.config.vision_config.patch_size
        contrast = F.avg_pool2d(images.square(), size) - F.avg_pool2d(images, size).square()
        chosen = 1 + contrast.sum(1).flatten(1).topk(kept, sorted=False).indices
        patches = tokens.gather(1, chosen[:, :, None].expand(-1, -1, tokens.shape[-1]))
        tokens = torch.cat((tokens[:, :1], patches), dim=1)
    hidden = tower.encoder(inputs_embeds=tower.pre_layrnorm(tokens)).last_hidden_state
    return tower.post_layernorm(hidden[:, 0])


def text_vectors(clip: CLIPModel, states: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """Unit vectors of the text tower's pooled states."""
    return F.normalize(clip.text_projection(states), dim=-1)
