"""The cards of this machine, counted without starting CUDA: whoever starts workers shall hold none."""

import os
import subprocess


def cards() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name here, one for each card; empty where there is none."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [card.strip() for card in chosen.split(",") if card.strip() and card.strip() != "-1"]
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in listed.stdout.splitlines() if line.strip()]


def environment(index: int, workers: int, each: int, found: list[str]) -> dict[str, str]:
    """What worker `index` of this machine gets: its cards, and its share of the cores.

    Args:
        each: cards of a worker.
        found: as `cards`.
    """
    threads = str(max((os.cpu_count() or 1) // workers, 1))
    given = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": threads}
    if found:
        first = index * each % len(found)
        given["CUDA_VISIBLE_DEVICES"] = ",".join(found[first : first + each])
    return given
