"""Initial weights that carry structure: what small networks would else take most of their training to find."""

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPModel

_PIXEL_GAIN = 2.0  # latents of colours in [0, 1] spread over about [-1, 1]
_WAVES = 4  # per axis of the image tower's position code
_SHARPNESS = 0.8  # of queries and keys: a head attends to one neighbour nearly alone
_STRIDES = (8, 16, 32)  # in pixels, of the layers in turn

_OPPONENT = torch.tensor([[0.57735] * 3, [0.70711, 0.0, -0.70711], [0.40825, -0.8165, 0.40825]])
"""Orthonormal rows: lightness, red against blue, green against both."""


def pass_colour_through(vae: AutoencoderTiny) -> None:
    """Make channels 0 to 2 of every layer carry colour in [0, 1], and latents 0 to 2 its opponent transform.

    From random weights the colour axes are found late; this start reconstructs each block's mean colour at once.
    """
    blur = torch.outer(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])) / 16.0
    dot = torch.zeros(3, 3)
    dot[1, 1] = 1.0
    opponent = _PIXEL_GAIN * _OPPONENT
    middle = opponent @ torch.full((3,), 0.5)
    with torch.no_grad():
        for module in (*vae.encoder.modules(), *vae.decoder.modules()):
            if type(module).__name__ == "AutoencoderTinyBlock":
                module.conv[-1].weight[:3].zero_()
                module.conv[-1].bias[:3].zero_()
        for coder in (vae.encoder, vae.decoder):
            for layer in coder.layers:
                if isinstance(layer, nn.Conv2d):
                    _carry(layer, torch.eye(3), blur if layer.stride[0] == 2 else dot)
        _carry(vae.encoder.layers[-1], opponent, dot)
        vae.encoder.layers[-1].bias[:3] = -middle
        inverse = torch.linalg.inv(opponent)
        _carry(vae.decoder.layers[0], inverse, dot)
        vae.decoder.layers[0].bias[:3] = inverse @ middle


def _carry(layer: nn.Conv2d, colours: Tensor, kernel: Tensor) -> None:
    layer.weight[:3].zero_()
    layer.weight[:3, :3] = colours[:, :, None, None] * kernel
    if layer.bias is not None:
        layer.bias[:3].zero_()


def keep_words_apart(clip: CLIPModel) -> None:
    """Give the text tower word vectors of unit variance, orthogonal but for chance.

    The tower stays as it is here: training reads its states once (`train_clip.Captions`). Trained, it would bring
    captions that differ in one word close together, and the U-Net would learn to tell them apart late. Locked, its
    states are random features of the words and their order, from which the projection and the U-Net learn.
    """
    embeddings = clip.text_model.embeddings
    with torch.no_grad():
        embeddings.token_embedding.weight.normal_(0.0, 1.0)
        embeddings.position_embedding.weight.normal_(0.0, 0.3)


def start_as_identity(unet: UNet2DConditionModel) -> None:
    """Make every residual block add nothing and the noise prediction zero, so that training begins at a high rate."""
    with torch.no_grad():
        for name, module in unet.named_modules():
            if name.endswith("conv2") or name == "conv_out":
                module.weight.zero_()
                module.bias.zero_()


def convolve(clip: CLIPModel) -> None:
    """Make the image tower start as a convolutional network over patches.

    The patch filters are the lowest 2-D cosines of lightness and colour. The last 16 dimensions carry a patch's place,
    and each of the eight heads of a layer attends to one neighbour; layers add to the other dimensions. A vision
    transformer finds both by itself, but only after many more pictures.
    """
    tower = clip.vision_model
    width, place = tower.embeddings.embed_dim, 4 * _WAVES
    with torch.no_grad():
        _see_cosines(tower.embeddings.patch_embedding.weight, width - place)
        grid = tower.embeddings.image_size // tower.embeddings.patch_size
        tower.embeddings.position_embedding.weight.zero_()
        tower.embeddings.position_embedding.weight[1:, -place:] = 3.0 * _places(grid)
        tower.embeddings.class_embedding[-place:] = 0.0
        for index, layer in enumerate(tower.encoder.layers):
            stride = _STRIDES[index % len(_STRIDES)] * 8.0 / tower.embeddings.image_size
            _attend_to_neighbours(layer.self_attn, stride, place)
            layer.self_attn.out_proj.weight[-place:] = 0.0
            layer.mlp.fc2.weight[-place:] = 0.0


def _see_cosines(kernel: Tensor, count: int) -> None:
    """Patch filters (width, 3, P, P): lightness takes one half of `count`, the other two colour axes the rest."""
    size = kernel.shape[-1]
    places = (torch.arange(size) + 0.5) * torch.pi / size
    basis = torch.cos(torch.arange(size)[:, None] * places)
    basis = basis / basis.norm(dim=1, keepdim=True)
    orders = sorted(((i, j) for i in range(size) for j in range(size)), key=lambda order: (sum(order), order))
    kernel.zero_()
    row = 0
    for axis, share in ((0, count // 2), (1, count // 4), (2, count - count // 2 - count // 4)):
        for i, j in orders[:share]:
            gain = 0.06 if i + j == 0 else min(0.2 * (i + j), 1.0)
            kernel[row] = gain * _OPPONENT[axis, :, None, None] * torch.outer(basis[i], basis[j])
            row += 1


def _waves() -> Tensor:
    return torch.pi / 8.0 * torch.arange(1, _WAVES + 1)


def _places(grid: int) -> Tensor:
    """Codes (grid * grid, 16): cosines and sines of the row, then of the column."""
    angles = torch.arange(grid)[:, None] * (8.0 / grid) * _waves()
    along = torch.cat((angles.cos(), angles.sin()), dim=1)
    return torch.cat((along[:, None].expand(-1, grid, -1), along[None].expand(grid, -1, -1)), dim=-1).flatten(
        0, 1
    )


def _attend_to_neighbours(attention: nn.Module, stride: float, place: int) -> None:
    """Queries turn their own place's code to that of the neighbour, keys show theirs."""
    neighbours = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)]
    size = attention.head_dim
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.mul_(0.1)
    for head, (row, column) in enumerate(neighbours[: attention.num_heads]):
        turn = torch.block_diag(_turn(row * stride), _turn(column * stride))
        rows = slice(head * size, head * size + place)
        attention.q_proj.weight[rows, -place:] = _SHARPNESS * turn
        attention.k_proj.weight[rows, -place:] = _SHARPNESS * torch.eye(place)


def _turn(steps: float) -> Tensor:
    """The rotation (8, 8) from a place's cosines and sines to those `steps` eighths of the image further."""
    cosine, sine = torch.diag((steps * _waves()).cos()), torch.diag((steps * _waves()).sin())
    return torch.cat((torch.cat((cosine, -sine), dim=1), torch.cat((sine, cosine), dim=1)))
