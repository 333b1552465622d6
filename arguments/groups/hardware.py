"""What the machine has."""

from dataclasses import dataclass

from arguments.option import option


@dataclass(frozen=True)
class HardwareParams:
    """What the machine has: memory, precision, compilation. Nothing here changes the result beyond rounding."""

    memory: str = option(
        "auto",
        "what to fit into; auto: by the memory there is. Smaller ones take longer, and cap the Gaussians",
        choices=("auto", "8gb", "12gb", "24gb", "max"),
    )
    precision: str = option(
        "auto",
        "of the diffusion model; auto: float16 on CUDA where GuidanceParams.fp16 is true, else float32",
        choices=("auto", "float32", "float16", "bfloat16"),
    )
    compile: str = option(
        "auto",
        "compile U-Net and image encoder (a slow start, then faster); auto: on CUDA, for 1000 steps or more",
        choices=("auto", "always", "never"),
    )
