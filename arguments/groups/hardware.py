"""What the machine has."""

from dataclasses import dataclass

from arguments.option import option


@dataclass(frozen=True)
class HardwareParams:
    """Fitting the machine: memory, precision, compilation. Gradients are the same except for rounding."""

    memory: str = option(
        "auto",
        "what to fit into; auto: by the memory there is. Smaller ones take longer, and without a max_gaussians of "
        "your own stop densification at 0.4 (8gb), 1 (12gb) and 3 million (24gb)",
        choices=("auto", "8gb", "12gb", "24gb", "max"),
    )
    precision: str = option(
        "auto",
        "of the diffusion model; auto: float16 on CUDA where GuidanceParams.fp16 is true, else float32",
        choices=("auto", "float32", "float16", "bfloat16"),
    )
    graphs: str = option(
        "auto",
        "launch U-Net, degradation operator, the total variation of Gaussians' renders and, in float32, the image "
        "encoder as CUDA graphs; auto: on CUDA, in one process, where memory has room (not with 8gb or 12gb), nothing "
        "in the U-Net is trained (for U-Net and encoder), and a graph gives the same numbers",
        choices=("never", "auto"),
    )
    compile: str = option(
        "auto",
        "compile U-Net and image encoder (a slow start, then faster); auto: on CUDA, for 1000 steps or more; autotune: "
        "always, and try several kernels for each of their operations, which takes minutes more at the first start",
        choices=("auto", "always", "autotune", "never"),
    )
