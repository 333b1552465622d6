"""The prior's figures: reconstruction, retrieval, and what the samples show; written beside the weights."""

import json
import logging
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from toybox import renders, world
from toybox.clip import Clip
from toybox.models import IMAGE_SIZE, LATENT_CHANNELS, LATENT_SIZE, TEXT_LENGTH, TITLE, WIDTH, count_macs
from toybox.recognition import recognise
from toybox.samples import GUIDANCE_SCALE, STEPS, load_pipeline, sample, save_grid
from toybox.train_vae import decode, encode
from toybox.train_views import COLOURS, Batch, Views, jitter, pair_captions, to_pixels, view_index
from utils.files import atomic
from utils.frechet import frechet_distance

_PROBES, _SAMPLES, _HELD_OUT_SAMPLES = 1000, 1000, 104
_PART = 100
_GRID, _GRID_COLUMNS = 48, 8

log = logging.getLogger(__name__)


def judge(
    vectors: Float[Tensor, "N D"],
    true: Batch,
    captions: Float[Tensor, "P D"],
    view_captions: Float[Tensor, "P W D"],
) -> dict[str, float]:
    """Shares of images, given as unit vectors, in which `recognise` finds the object, the colour, both, the view word.

    Args:
        true: what is in the images.
        captions: vectors of the captions of all pairs, in the order of the pair index.
        view_captions: the same with every view word.
    """
    seen = recognise(vectors, captions, view_captions[true.pair])
    right_object, right_colour = seen.object == true.object, seen.colour == true.colour
    right = {
        "pair": right_object & right_colour,
        "object": right_object,
        "colour": right_colour,
        "view": seen.view == true.view,
    }
    return {name: round(each.float().mean().item(), 3) for name, each in right.items()}


def write(prior: Path, cache: Path, device: torch.device, stages: dict[str, dict], pictures: Path) -> None:
    """Measure the prior and write `report.json` and `README.md` into it, and two pictures into `pictures`."""
    report = {"stages": stages}
    splits = {name: Views(name, cache, device) for name in ("test", "held_out")}
    probes = {name: views.at(torch.arange(min(_PROBES, len(views)))) for name, views in splits.items()}
    pipeline = load_pipeline(prior, device)
    clip = Clip.from_pretrained(prior / "clip", device)
    texts = caption_vectors(clip)
    report |= _sizes(prior, pipeline.vae, pipeline.unet, clip)
    report |= _reconstruction(pipeline.vae, probes, pictures)

    generator = torch.Generator(device).manual_seed(0)
    for name, probe in probes.items():
        soft = torch.cat([jitter(part, generator) for part in probe.images.split(100)])
        report[f"retrieval_{name}"] = judge(clip.embed_images(probe.images), probe, *texts)
        report[f"retrieval_{name}_blurred_noisy"] = judge(clip.embed_images(soft), probe, *texts)
    log.info("report: %s", json.dumps(report))

    report["samples"] = {"steps": STEPS, "guidance_scale": GUIDANCE_SCALE}
    twins, renders = more_renders(_SAMPLES, device), splits["test"]
    images = sample(pipeline, twins.captions, steps=STEPS)
    vectors = clip.embed_images(images)
    report["samples_train_pairs"] = {"count": len(vectors)} | judge(vectors, twins, *texts)
    parts = torch.arange(len(renders)).split(_PART)
    features = torch.cat([clip.embed_images(renders.at(part).images) for part in parts])
    report["frechet_clip"] = compare(vectors, clip.embed_images(twins.images), features)
    save_samples(images, pictures)

    held_out = splits["held_out"].at(torch.arange(min(_HELD_OUT_SAMPLES, len(splits["held_out"]))))
    vectors = clip.embed_images(sample(pipeline, held_out.captions, steps=STEPS))
    report["samples_held_out_pairs"] = {"count": len(vectors)} | judge(vectors, held_out, *texts)
    save_report(report, prior)


def caption_vectors(clip: Clip) -> tuple[Float[Tensor, "P D"], Float[Tensor, "P W D"]]:
    """Unit vectors of the captions of all pairs, without a view word and with each."""
    plain = clip.embed_texts(pair_captions())
    return plain, torch.stack([clip.embed_texts(pair_captions(view)) for view in world.VIEWS], 1)


def more_renders(count: int, device: torch.device) -> Batch:
    """What the test split would go on with: training pairs that take turns before random cameras.

    Samples are drawn of their captions, so that nothing but the renderer is between the two.
    """
    begin = renders.SPLITS["test"] or 0
    images, labels = renders.sample_views("test", range(begin, begin + count), 0, IMAGE_SIZE, device)
    kind, colour = torch.from_numpy(labels[:, :2]).long().T.to(device)
    pictures = to_pixels(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))
    return Batch(pictures, kind, colour, view_index(torch.from_numpy(labels[:, 2]).to(device)))


def compare(
    samples: Float[Tensor, "N D"], twins: Float[Tensor, "N D"], renders: Float[Tensor, "M D"]
) -> dict[str, float]:
    """Fréchet distances to `renders` of samples, and of as many other renders with the samples' captions.

    Finite numbers bias both upwards alike: the second is what perfect samples would have.
    """
    return {
        "samples": len(samples),
        "renders": len(renders),
        "samples_to_renders": round(frechet_distance(samples, renders), 4),
        "renders_to_renders": round(frechet_distance(twins, renders), 4),
    }


def save_samples(images: Float[Tensor, "N 3 H W"], pictures: Path) -> None:
    """A grid of every n-th sample: training pairs take turns, so neighbours would show few kinds of object."""
    chosen = images[:: max(len(images) // _GRID, 1)][:_GRID]
    small = F.interpolate(chosen, size=96, mode="bilinear", antialias=True)
    save_grid(small, pictures / "toybox_samples.png", _GRID_COLUMNS)


def save_report(report: dict, prior: Path) -> None:
    """Write `report.json` and the card that is made of it."""
    with atomic(prior / "report.json") as path:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    with atomic(prior / "README.md") as path:
        path.write_text(_card(report), encoding="utf-8")
    log.info("report: wrote %s", prior / "report.json")


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


def _reconstruction(vae: AutoencoderTiny, probes: dict[str, Batch], pictures: Path) -> dict:
    ratios = {}
    for name, probe in probes.items():
        again = decode(vae, encode(vae, probe.images))
        error = (again - probe.images).square().mean(dim=(1, 2, 3))
        ratios[name] = round((-10.0 * error.log10()).mean().item(), 2)
        if name == "test":
            rows = [*probe.images[: 2 * _GRID_COLUMNS].split(_GRID_COLUMNS)]
            twice = [*again[: 2 * _GRID_COLUMNS].split(_GRID_COLUMNS)]
            grid = [images for row in zip(rows, twice, strict=True) for images in row]
            save_grid(torch.cat(grid).cpu(), pictures / "toybox_reconstructions.png", _GRID_COLUMNS)
            latents = encode(vae, probe.images)
            ratios["latent_mean"] = [round(value, 3) for value in latents.mean(dim=(0, 2, 3)).tolist()]
            ratios["latent_deviation"] = [round(value, 3) for value in latents.std(dim=(0, 2, 3)).tolist()]
    return {"reconstruction_psnr": ratios}


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
        if "count" in score:
            title = f"{score['count']} {title}"
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
            f"{distance['samples_to_renders']:.3f} from {distance['samples']} samples to {distance['renders']} test "
            f"renders; {distance['renders_to_renders']:.3f} from as many other renders",
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
    samples, scale = report["samples"], report["samples"]["guidance_scale"]
    return f"""{TITLE}

A small text-to-image prior of a procedural world of {len(world.OBJECTS)} kinds of object in {len(COLOURS)} colours:
autoencoder (128 px to 4x32x32), CLIP, and a U-Net that predicts noise. `StableDiffusionPipeline.from_pretrained` reads
this folder, `CLIPModel.from_pretrained` its folder `clip`. Captions read "a red car" or "a red car, front view".
It was trained on rendered views alone, without other data or weights. On a card, `python -m toybox.train --preset card
--output DIR` makes such a folder, with the shipped autoencoder unless `--stage vae` is run first; `--preset cpu` trains
the shipped folder further.

| | |
| --- | --- |
{table}

A caption counts as right if it is the nearest of all {len(world.OBJECTS) * len(COLOURS)} (object, colour) captions;
the view word is chosen among three given the right object and colour. {len(world.HELD_OUT)} (object, colour) pairs are
held out of training. Samples are drawn in {samples["steps"]} DDIM steps at a guidance scale of {scale}.
Weights: {report["weights_megabytes"]} MB. Giga multiply-accumulates of one forward pass: {macs}.
All figures are in `report.json`.
"""
