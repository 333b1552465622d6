"""The whole suite under the instruction sets, the numbers of threads and the orders of other machines.

`make test-matrix`, or `python tests/matrix.py [tests or options of pytest]` for a part of it. Prints a table last.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHUFFLE = "--random-order-seed"
SIDE_BY_SIDE = ("-n", "logical", "--maxprocesses", "4", "--dist", "worksteal")
"""As in `make test`, whose tests run on one thread each."""

WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Where threads outnumber cores: by default each spins while it waits for others, and all take three times as long."""
TWO = {"TEST_THREADS": "2", **WAITING}


def cells(flags: set[str], cores: int) -> list[tuple[str, dict[str, str]]]:
    """What to run on a processor with these flags: a name and the environment of each.

    ATEN_CPU_CAPABILITY chooses the loops of PyTorch's own operations, ONEDNN_MAX_CPU_ISA those of its convolutions and
    matrix products. Each changes the order of sums, or what they are rounded to in between.
    """
    threads = str(max(4, 2 * cores))
    found = [
        ("one thread", {"TEST_THREADS": "1"}),
        (f"{threads} threads", {"TEST_THREADS": threads, **WAITING}),
    ]
    if "sse4_1" in flags:
        found += [
            ("ATen default", {"ATEN_CPU_CAPABILITY": "default", **TWO}),
            ("oneDNN SSE41", {"ONEDNN_MAX_CPU_ISA": "SSE41", **TWO}),
        ]
    if "avx2" in flags:
        found += [
            ("ATen avx2", {"ATEN_CPU_CAPABILITY": "avx2", **TWO}),
            ("oneDNN AVX2", {"ONEDNN_MAX_CPU_ISA": "AVX2", **TWO}),
        ]
    if "avx512_bf16" in flags:
        found.append(("oneDNN AVX512_CORE_BF16", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", **TWO}))
    return found


def processor_flags() -> set[str]:
    """As Linux names them; on other systems none, and only threads and orders vary."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith("flags") for flag in line.split(":", 1)[1].split()}


def show(line: str) -> None:
    """A line for the user, before what pytest prints next."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    """Runs every cell, each in an order of its own; 1 if one of them was not green."""
    results = []
    for seed, (name, environment) in enumerate(cells(processor_flags(), os.cpu_count() or 1)):
        settings = " ".join(f"{key}={value}" for key, value in environment.items())
        show(f"\n{settings} python -m pytest {SHUFFLE}={seed} {' '.join(arguments)}")
        start = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-q", *SIDE_BY_SIDE, f"{SHUFFLE}={seed}", *arguments]
        code = subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=False).returncode
        results.append((name, code, time.monotonic() - start))
    show("\n| cell | pytest | seconds |\n| --- | --- | --- |")
    for name, code, seconds in results:
        show(f"| {name} | {'green' if code == 0 else f'red ({code})'} | {seconds:.0f} |")
    return int(any(code for _, code, _ in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
