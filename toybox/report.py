"""The prior's figures: reconstruction, retrieval, and what the samples show; written beside the weights."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from toybox import world
from toybox.clip import Clip
from toybox.models import IMAGE_SIZE, LATENT_CHANNELS, LATENT_SIZE, TEXT_LENGTH, WIDTH, count_macs
from toybox.samples import GUIDANCE_SCALE, STEPS, load_pipeline, sample, save_grid
from toybox.train_vae import decode, encode
from toybox.train_views import COLOURS, Views, jitter, pair_captions
from utils.files import atomic

_PROBES, _SAMPLES = 1000, 104
_GRID_COLUMNS = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judgement:
    """Shares of images that the CLIP judges rightly."""

    pair: float
    """The nearest of all (object, colour) captions is the image's."""
    object: float
    colour: float
    view: float
    """The nearest view caption, given the right object and colour, is the image's."""

    def rounded(self) -> dict[str, float]:
        return {name: round(value, 3) for name, value in vars(self).items()}


def judge(
    vectors: Float[Tensor, "N D"],
    pairs: Int[Tensor, " N"],
    views: Int[Tensor, " N"],
    pair_texts: Float[Tensor, "P D"],
    view_texts: Float[Tensor, "P 3 D"],
) -> Judgement:
    """Judge unit vectors of images by those of all captions, in the order of the pair index."""
    found = (vectors @ pair_texts.T).argmax(1)
    seen = torch.einsum("nd,nvd->nv", vectors, view_texts[pairs]).argmax(1)
    count = len(COLOURS)
    return Judgement(
        pair=(found == pairs).float().mean().item(),
        object=(found // count == pairs // count).float().mean().item(),
        colour=(found % count == pairs % count).float().mean().item(),
        view=(seen == views).float().mean().item(),
    )


def frechet_distance(first: Float[Tensor, "N D"], second: Float[Tensor, "M D"]) -> float:
    """Squared Wasserstein distance of the Gaussians fitted to two sets of features (Heusel et al. 2017, eq. 6)."""
    first, second = first.double(), second.double()
    shift = (first.mean(0) - second.mean(0)).square().sum()
    here, there = first.T.cov(), second.T.cov()
    values, axes = torch.linalg.eigh(here)
    root = axes * values.clamp(min=0.0).sqrt() @ axes.T
    cross = torch.linalg.eigvalsh(root @ there @ root).clamp(min=0.0).sqrt().sum()
    return (shift + here.trace() + there.trace() - 2.0 * cross).item()


def write(prior: Path, cache: Path, device: torch.device, stages: dict[str, dict], pictures: Path) -> None:
    """Measure the prior and write `report.json` and `README.md` into it, and two pictures into `pictures`."""
    report = {"stages": stages}
    splits = {name: Views(name, cache, device, most=_PROBES) for name in ("test", "held_out")}
    pipeline = load_pipeline(prior, device)
    clip = Clip.from_pretrained(prior / "clip", device)
    pair_texts = clip.embed_texts(pair_captions())
    view_texts = torch.stack([clip.embed_texts(pair_captions(view)) for view in world.VIEWS], 1)
    report |= _sizes(prior, pipeline.vae, pipeline.unet, clip)
    report |= _reconstruction(pipeline.vae, splits, pictures)

    generator = torch.Generator(device).manual_seed(0)
    renders = {}
    for name, views in splits.items():
        images = views.pixels(torch.arange(len(views)))
        renders[name] = clip.embed_images(images)
        soft = clip.embed_images(torch.cat([jitter(part, generator) for part in images.split(100)]))
        texts = pair_texts, view_texts
        report[f"retrieval_{name}"] = judge(renders[name], views.pair, views.view, *texts).rounded()
        report[f"retrieval_{name}_blurred_noisy"] = judge(soft, views.pair, views.view, *texts).rounded()
    _log.info("report: %s", json.dumps(report))

    report["samples"] = {"steps": STEPS, "guidance_scale": GUIDANCE_SCALE, "of_each": _SAMPLES}
    for name, split in (("train_pairs", world.train_pairs()), ("held_out_pairs", sorted(world.HELD_OUT))):
        captions, pairs, views = _prompts(split, _SAMPLES)
        images = sample(pipeline, captions)
        vectors = clip.embed_images(images)
        report[f"samples_{name}"] = judge(
            vectors, pairs.to(device), views.to(device), pair_texts, view_texts
        ).rounded()
        if name == "train_pairs":
            save_grid(_shrink(images[:48]), pictures / "toybox_samples.png", _GRID_COLUMNS)
            some, others = renders["test"][:_SAMPLES], renders["test"][_SAMPLES:]
            report["frechet_clip"] = {
                "samples_to_renders": round(frechet_distance(vectors, others), 4),
                "renders_to_renders": round(frechet_distance(some, others), 4),
            }
    with atomic(prior / "report.json") as path:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    with atomic(prior / "README.md") as path:
        path.write_text(_card(report), encoding="utf-8")
    _log.info("report: wrote %s", prior / "report.json")


def _prompts(pairs: list[tuple[str, str]], count: int) -> tuple[list[str], Tensor, Tensor]:
    """Captions with view words, spread evenly over the pairs; their pair indices and view indices."""
    captions, indices, views = [], [], []
    for number in range(count):
        name, colour = pairs[(number * 7) % len(pairs)]
        view = (number + number // len(pairs)) % 3
        captions.append(world.caption(name, colour, world.VIEWS[view]))
        indices.append(world.OBJECTS.index(name) * len(COLOURS) + COLOURS.index(colour))
        views.append(view)
    return captions, torch.tensor(indices), torch.tensor(views)


def _sizes(prior: Path, vae: AutoencoderTiny, unet: UNet2DConditionModel, clip: Clip) -> dict:
    device = clip.device
    image = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, device=device)
    latent = torch.zeros(1, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE, device=device)
    step, state = torch.ones(1, device=device), torch.zeros(1, TEXT_LENGTH, WIDTH, device=device)
    macs = {
        "encoder": count_macs(lambda: vae.encode(image)),
        "decoder": count_macs(lambda: vae.decode(latent)),
        "unet": count_macs(lambda: unet(latent, step, state)),
        "clip_image": count_macs(lambda: clip.model.get_image_features(pixel_values=image)),
    }
    weights = sum(path.stat().st_size for path in prior.rglob("*.safetensors"))
    return {
        "giga_macs": {name: round(value, 3) for name, value in macs.items()},
        "weights_megabytes": round(weights / 1e6, 1),
    }


def _reconstruction(vae: AutoencoderTiny, splits: dict[str, Views], pictures: Path) -> dict:
    ratios = {}
    for name, views in splits.items():
        images = views.pixels(torch.arange(len(views)))
        again = decode(vae, encode(vae, images))
        error = (again - images).square().mean(dim=(1, 2, 3))
        ratios[name] = round((-10.0 * error.log10()).mean().item(), 2)
        if name == "test":
            pair = torch.cat((images[:_GRID_COLUMNS], again[:_GRID_COLUMNS])).cpu()
            pair = torch.cat((pair, images[_GRID_COLUMNS : 2 * _GRID_COLUMNS].cpu()))
            pair = torch.cat((pair, again[_GRID_COLUMNS : 2 * _GRID_COLUMNS].cpu()))
            save_grid(pair, pictures / "toybox_reconstructions.png", _GRID_COLUMNS)
            latents = encode(vae, images)
            ratios["latent_mean"] = [round(value, 3) for value in latents.mean(dim=(0, 2, 3)).tolist()]
            ratios["latent_deviation"] = [round(value, 3) for value in latents.std(dim=(0, 2, 3)).tolist()]
    return {"reconstruction_psnr": ratios}


def _shrink(images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 h w"]:
    return functional.interpolate(images, size=96, mode="bilinear", antialias=True)


def _card(report: dict) -> str:
    rows = [
        ("reconstruction, test renders", f"{report['reconstruction_psnr']['test']:.1f} dB"),
        ("reconstruction, held-out pairs", f"{report['reconstruction_psnr']['held_out']:.1f} dB"),
    ]
    titles = {
        "retrieval_test": "CLIP on test renders",
        "retrieval_test_blurred_noisy": "the same, blurred, shifted and noisy",
        "retrieval_held_out": "CLIP on renders of held-out pairs",
        "samples_train_pairs": "samples of training pairs, as CLIP judges them",
        "samples_held_out_pairs": "samples of held-out pairs, as CLIP judges them",
    }
    for key, title in titles.items():
        score = report[key]
        rows.append(
            (
                title,
                f"caption {score['pair']:.3f}, object {score['object']:.3f}, colour {score['colour']:.3f}, "
                f"view word {score['view']:.3f}",
            )
        )
    distance = report["frechet_clip"]
    rows.append(
        (
            "Fréchet distance of CLIP features",
            f"{distance['samples_to_renders']:.3f} samples to renders, "
            f"{distance['renders_to_renders']:.3f} renders to renders",
        )
    )
    stages = [
        (
            name,
            f"{stage['steps']} steps of {stage['batch']}, {stage['seconds']} s on {stage['hardware']}, "
            f"from {stage['start']}",
        )
        for name, stage in report["stages"].items()
    ]
    macs = ", ".join(f"{name} {value}" for name, value in report["giga_macs"].items())
    table = "\n".join(f"| {title} | {value} |" for title, value in (*rows, *stages))
    return f"""# The toybox prior

A small text-to-image prior of a procedural world of {len(world.OBJECTS)} kinds of object in {len(COLOURS)} colours:
autoencoder (128 px to 4x32x32), CLIP, and a U-Net that predicts noise. `StableDiffusionPipeline.from_pretrained` reads
this folder, `CLIPModel.from_pretrained` its folder `clip`. Captions read "a red car" or "a red car, front view".
`python -m toybox.train` makes such a folder from rendered views alone; no other data or weights enter it. The CLIP in
`clip` and the pipeline have a tokenizer each: they may number words differently.

| | |
| --- | --- |
{table}

A caption counts as right if it is the nearest of all {len(world.OBJECTS) * len(COLOURS)} (object, colour) captions;
the view word is chosen among three given the right object and colour. {len(world.HELD_OUT)} (object, colour) pairs are
held out of training. Samples: {report["samples"]["of_each"]} captions each, {report["samples"]["steps"]} DDIM steps,
guidance scale {report["samples"]["guidance_scale"]}. Weights: {report["weights_megabytes"]} MB. Giga
multiply-accumulates of one forward pass: {macs}. All figures are in `report.json`.
"""
