"""A Shap-E pipeline of few channels whose surface is known: an upright figure with a nose, one arm and a red front.

Prior and CLIP text encoder have the layers of the published ones (24 and 12), and few channels.
Its marching cubes table and its text-to-latent prior are real in form; the prior's weights are random, so prompt and
seed move the surface a little.
"""

import itertools
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.tiny_models import byte_tokenizer

HIDDEN, LATENT, TEXT = 64, 16, 16
NAMES = tuple(f"nerstf.mlp.{layer}.weight" for layer in range(4))
SHAPES = ((HIDDEN, 93), (HIDDEN, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, HIDDEN))
# Shap-E's own frame: z up, front -y. Seen from the front, +x is on the right.
BALLS = ((0.0, 0.0, -0.3, 0.4), (0.0, 0.0, 0.45, 0.3), (0.0, -0.4, 0.45, 0.25), (0.55, 0.0, -0.2, 0.25))
"""Body, head, nose and right arm: centre and radius."""


def save_shap_e(folder: Path, *, empty: bool = False) -> Path:
    """Write the pipeline as a diffusers folder; `empty`: its surface is outside of the volume."""
    import diffusers
    from diffusers.pipelines.shap_e.renderer import ShapERenderer
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        renderer = ShapERenderer(param_names=NAMES, param_shapes=SHAPES, d_latent=LATENT, d_hidden=HIDDEN)
        _train(renderer.mlp, steps=1 if empty else 800)
        if empty:
            with torch.no_grad():
                renderer.mlp.mlp[-1].bias[0] = -1e3
        _let_latents_project(renderer)
        renderer.mesh_decoder.cases, renderer.mesh_decoder.masks = marching_cubes_table()
        pipeline = diffusers.ShapEPipeline(
            prior=diffusers.PriorTransformer(
                num_attention_heads=2, attention_head_dim=8, num_layers=24, embedding_dim=LATENT,
                num_embeddings=len(SHAPES) * HIDDEN, additional_embeddings=0, embedding_proj_dim=TEXT,
                time_embed_dim=32, clip_embed_dim=2 * LATENT, time_embed_act_fn="gelu", norm_in_type="layer",
                encoder_hid_proj_type=None, added_emb_type=None,
            ),
            text_encoder=CLIPTextModelWithProjection(
                CLIPTextConfig(
                    vocab_size=514, hidden_size=32, intermediate_size=48, num_hidden_layers=12,
                    num_attention_heads=4, projection_dim=TEXT, bos_token_id=512, eos_token_id=513,
                )
            ),
            tokenizer=byte_tokenizer(),
            scheduler=diffusers.HeunDiscreteScheduler(
                beta_schedule="exp", num_train_timesteps=1024, prediction_type="sample", use_karras_sigmas=True,
                clip_sample=True, clip_sample_range=1.0,
            ),
            shap_e_renderer=renderer,
        )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def inside(points: Tensor) -> Tensor:
    """Signed depth below the surface, positive inside."""
    balls = torch.tensor(BALLS)
    return (balls[:, 3] - (points[:, None] - balls[:, :3]).norm(dim=-1)).amax(dim=1)


def _train(model: nn.Module, steps: int) -> None:
    """Teach the network depth (channel 0) and colour (channels 3 to 5): red in front, dark grey elsewhere."""
    optimizer = torch.optim.Adam(model.mlp.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    low = torch.zeros(93)
    low[:12], low[48:57] = 1.0, 1.0  # the place itself, and its three lowest frequencies
    first = model.mlp[0]
    for _ in range(steps):
        points = 2 * torch.rand(1024, 3) - 1
        with torch.no_grad():
            first.weight.mul_(low)
        output = _preactivations(model, points)
        depth = (4 * inside(points)).clamp(-1, 1)
        red = torch.where(points[:, 1] < -0.15, 2.0, -2.0)
        colors = torch.stack([red, torch.full_like(red, -2.0), torch.full_like(red, -2.0)], dim=1)
        loss = (output[:, 0].tanh() - depth).square().mean() + 0.1 * (output[:, 3:6] - colors).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        first.weight.mul_(low)


def _preactivations(model: nn.Module, points: Tensor) -> Tensor:
    from diffusers.pipelines.shap_e.renderer import encode_direction, encode_position

    hidden = encode_position(points)
    for index, layer in enumerate(model.mlp):
        if index == model.config.insert_direction_at:
            hidden = torch.cat([hidden, encode_direction(points)], dim=-1)
        hidden = layer(hidden)
        if index < len(model.mlp) - 1:
            hidden = nn.functional.silu(hidden)
    return hidden


@torch.no_grad()
def _let_latents_project(renderer: nn.Module) -> None:
    """The first layers come from latents: the trained ones, plus a little of the latent."""
    for index, (vectors, channels) in enumerate(SHAPES):
        projection = renderer.params_proj.projections[NAMES[index].replace(".", "__")]
        projection.proj.bias.copy_(renderer.mlp.mlp[index].weight.reshape(vectors * channels))
        projection.norm.weight.fill_(0.002)
        projection.norm.bias.zero_()


def marching_cubes_table() -> tuple[Tensor, Tensor]:
    """Triangles of every cube, as diffusers' decoder reads them: edges (256, 5, 3) and which of the five are used."""
    corners = [(x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1)]  # bit x + 2 y + 4 z
    edges = []
    for axis in range(3):
        for second, first in itertools.product((0, 1), repeat=2):
            ends = [[first, second], [first, second]]
            for value, end in enumerate(ends):
                end.insert(axis, value)
            edges.append(tuple(tuple(end) for end in ends))
    cases, masks = torch.zeros(256, 5, 3, dtype=torch.long), torch.zeros(256, 5, dtype=torch.bool)
    for case in range(256):
        full = {corner for bit, corner in enumerate(corners) if case >> bit & 1}
        crossed = [index for index, (low, high) in enumerate(edges) if (low in full) != (high in full)]
        for row, triangle in enumerate(_fan(crossed, edges, full)[:5]):
            cases[case, row], masks[case, row] = torch.tensor(triangle), True
    return cases, masks


def _fan(crossed: list[int], edges: list, full: set) -> list[tuple[int, int, int]]:
    """Triangles around the crossed edges, in the order in which they surround the corners inside."""
    if len(crossed) < 3:
        return []
    middles = torch.tensor([edges[index] for index in crossed], dtype=torch.float32).mean(dim=1)
    centre = middles.mean(dim=0)
    outwards = centre - torch.tensor(sorted(full), dtype=torch.float32).mean(dim=0)
    helper = (
        torch.tensor([1.0, 0.0, 0.0])
        if outwards[0].abs() < outwards.abs().max()
        else torch.tensor([0.0, 1, 0])
    )
    right = torch.linalg.cross(outwards, helper)
    up = torch.linalg.cross(outwards, right)
    angles = torch.atan2((middles - centre) @ up, (middles - centre) @ right)
    order = [crossed[index] for index in angles.argsort()]
    return [(order[0], order[i], order[i + 1]) for i in range(1, len(order) - 1)]
