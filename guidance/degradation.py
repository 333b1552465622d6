"""The degradation operator M_ψ (Eq. 13): a small network that maps the model's prediction to the noise of the renders.

It runs in float32, is trained online from random weights, and normalises with the statistics of the batch it sees.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from arguments import VDMParams
from guidance.noise import seeded
from utils.distributed import processes, summed

TIME_WIDTH = 128
NORM_GROUPS = 8


class Pointwise(nn.Conv2d):
    """A 1×1 convolution, computed as the product of matrices that it is: on a CPU half the time."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
        return F.linear(x.movedim(1, 3), self.weight.flatten(1), self.bias).movedim(3, 1)


def channels_first(x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
    """A copy in the layout in which PyTorch takes its own depthwise kernels on CUDA.

    In channels-last memory, which pointwise convolutions leave, cuDNN launches a k×1 kernel channel by channel. A
    picture of one pixel is contiguous in both layouts, and only a copy has the strides of the first.
    """
    return x.clone(memory_format=torch.contiguous_format)


class AxialDepthwise(nn.Module):
    """x + a k×1 and a 1×k depthwise convolution of x, at the same size."""

    def __init__(self, channels: int, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        reach = kernel // 2 * dilation
        self.vertical = nn.Conv2d(
            channels, channels, (kernel, 1), padding=(reach, 0), dilation=dilation, groups=channels
        )
        self.horizontal = nn.Conv2d(
            channels, channels, (1, kernel), padding=(0, reach), dilation=dilation, groups=channels
        )

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        x = channels_first(x) if x.is_cuda else x
        return x + self.vertical(x) + self.horizontal(x)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation by the statistics of this very batch, in training and evaluation alike; all of it, where
    several processes share it.

    One value a channel has no variance (a single 32x32 latent at the bottleneck): there, and only there, the
    statistics are those of groups of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, track_running_stats=False)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        if x.numel() * processes() == x.shape[1]:
            return F.group_norm(x, NORM_GROUPS, self.weight, self.bias, self.eps)
        return super().forward(x) if processes() == 1 else self._over_all(x)

    def _over_all(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """By the statistics of the batch that the processes share."""
        count = processes() * x.numel() / x.shape[1]
        mean = summed(x.sum(dim=(0, 2, 3), keepdim=True)) / count
        variance = summed((x - mean).square().sum(dim=(0, 2, 3), keepdim=True)) / count
        scale = (variance + self.eps).rsqrt() * self.weight.view(1, -1, 1, 1)
        return (x - mean) * scale + self.bias.view(1, -1, 1, 1)


class Normalization(nn.Module):
    """Batch or group normalisation, followed by a scale and shift that depend on t where `timed`.

    The modulation starts at zero, so that the timed network begins as the untimed one.
    """

    def __init__(self, channels: int, norm: str, timed: bool) -> None:
        super().__init__()
        self.norm = BatchNorm(channels) if norm == "batch" else nn.GroupNorm(NORM_GROUPS, channels)
        self.modulation = nn.Linear(TIME_WIDTH, 2 * channels) if timed else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(
        self, x: Float[Tensor, "B C h w"], time: Float[Tensor, "B E"] | None
    ) -> Float[Tensor, "B C h w"]:
        x = self.norm(x)
        if self.modulation is None:
            return x
        scale, shift = self.modulation(time)[:, :, None, None].chunk(2, dim=1)
        return x * (1 + scale) + shift


class TimeEmbedding(nn.Module):
    """Sinusoids of t through one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(TIME_WIDTH, TIME_WIDTH)

    def forward(self, timesteps: Int[Tensor, " B"]) -> Float[Tensor, "B E"]:
        half = TIME_WIDTH // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=timesteps.device) / half)
        angles = timesteps[:, None].float() * frequencies
        return F.silu(self.hidden(torch.cat([angles.sin(), angles.cos()], dim=1)))


class Encoder(nn.Module):
    """Half the size, `outputs` channels; also returns the normalised full-size features for the skip."""

    def __init__(self, inputs: int, outputs: int, norm: str, timed: bool) -> None:
        super().__init__()
        self.mix_space = AxialDepthwise(inputs, 7)
        self.norm = Normalization(inputs, norm, timed)
        self.mix_channels = Pointwise(inputs, outputs)

    def forward(self, x: Tensor, time: Tensor | None) -> tuple[Tensor, Tensor]:
        skip = self.norm(self.mix_space(x), time)
        return F.gelu(F.max_pool2d(self.mix_channels(skip), 2)), skip


class Bottleneck(nn.Module):
    """Three dilated axial branches in parallel at a quarter of the channels."""

    def __init__(self, channels: int, norm: str, timed: bool) -> None:
        super().__init__()
        narrow = channels // 4
        self.reduce = Pointwise(channels, narrow)
        self.branches = nn.ModuleList(AxialDepthwise(narrow, 3, dilation) for dilation in (1, 2, 3))
        self.norm = Normalization(channels, norm, timed)
        self.mix_channels = Pointwise(channels, channels)

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        x = self.reduce(x)
        x = torch.cat([x, *(branch(x) for branch in self.branches)], dim=1)
        return F.gelu(self.mix_channels(self.norm(x, time)))


class Decoder(nn.Module):
    """Twice the size, joined with the encoder's skip of `outputs` channels."""

    def __init__(self, inputs: int, outputs: int, norm: str, timed: bool) -> None:
        super().__init__()
        self.join = Pointwise(inputs + outputs, outputs)
        self.norm = Normalization(outputs, norm, timed)
        self.mix_space = AxialDepthwise(outputs, 7)
        self.mix_channels = Pointwise(outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor, time: Tensor | None) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = self.norm(self.join(torch.cat([x, skip], dim=1)), time)
        return F.gelu(self.mix_channels(self.mix_space(x)))


class ULite(nn.Module):
    """U-Lite (Dinh et al., "1M parameters are enough?", 2023): 879,252 parameters from 4 to 4 channels.

    Sizes that 32 does not divide are padded with zeros, as its convolutions pad, and cropped back.

    Args:
        norm: "batch", U-Lite's own, or "group".
        timed: modulate every normalisation by t; the paper's operator is not told t.
    """

    WIDTHS = (16, 32, 64, 128, 256, 512)
    STRIDE = 32

    def __init__(self, channels: int = 4, norm: str = "batch", timed: bool = False) -> None:
        super().__init__()
        stages = list(zip(self.WIDTHS, self.WIDTHS[1:], strict=False))
        self.time = TimeEmbedding() if timed else None
        self.head = nn.Conv2d(channels, self.WIDTHS[0], 7, padding=3)
        self.encoders = nn.ModuleList(Encoder(narrow, wide, norm, timed) for narrow, wide in stages)
        self.bottleneck = Bottleneck(self.WIDTHS[-1], norm, timed)
        self.decoders = nn.ModuleList(Decoder(wide, narrow, norm, timed) for narrow, wide in reversed(stages))
        self.tail = Pointwise(self.WIDTHS[0], channels)

    def forward(
        self, noise_pred: Float[Tensor, "B C h w"], timesteps: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C h w"]:
        height, width = noise_pred.shape[-2:]
        x = self.head(F.pad(noise_pred, (0, -width % self.STRIDE, 0, -height % self.STRIDE)))
        time = self.time(timesteps) if self.time is not None else None
        skips = []
        for encoder in self.encoders:
            x, skip = encoder(x, time)
            skips.append(skip)
        x = self.bottleneck(x, time)
        for decoder in self.decoders:
            x = decoder(x, skips.pop(), time)
        return self.tail(x)[..., :height, :width]


class Linear(nn.Module):
    """One learned factor for every element of the latent, 1 at the start (the linear operator of Fig. 7)."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(shape))

    def forward(
        self,
        noise_pred: Float[Tensor, "B C h w"],
        timesteps: Int[Tensor, " B"],  # noqa: ARG002 - every operator is called alike
    ) -> Float[Tensor, "B C h w"]:
        return self.factor * noise_pred


class ULiteNoise(nn.Module):
    """U-Lite plus a learned observation noise, 0 at the start (Eq. 12's n, the noisy operator of Fig. 7)."""

    def __init__(self, shape: tuple[int, int, int], norm: str, timed: bool) -> None:
        super().__init__()
        self.operator = ULite(shape[0], norm, timed)
        self.observation_noise = nn.Parameter(torch.zeros(shape))

    def forward(
        self, noise_pred: Float[Tensor, "B C h w"], timesteps: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C h w"]:
        return self.operator(noise_pred, timesteps) + self.observation_noise


def build_degradation(params: VDMParams, shape: tuple[int, int, int], rng: torch.Generator) -> nn.Module:
    """The operator that `operator`, `m_norm` and `m_time` name, with random weights drawn from `rng`.

    Args:
        shape: C, h, w of a latent.
    """
    timed = params.m_time == "film"
    with seeded(rng):
        if params.operator == "linear":
            return Linear(shape)
        if params.operator == "ulite_noise":
            return ULiteNoise(shape, params.m_norm, timed)
        return ULite(shape[0], params.m_norm, timed)
