"""The rasterizer of the Gaussians."""

from dataclasses import dataclass

from arguments.option import option


@dataclass(frozen=True)
class PipelineParams:
    """The rasterizer."""

    backend: str = option(
        "auto", "kernels; auto: the fastest that the device has", choices=("auto", "cpu", "torch", "cuda")
    )
    convert_SHs_python: bool = option(False, "colour is the sigmoid of the stored value, without harmonics")
    debug: bool = option(False, "check the rasterizer's inputs and outputs at every call")
