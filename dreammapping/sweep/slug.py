"""Names of folders that tell what is in them."""

import hashlib
import re

LONGEST = 48
"""Letters of a text in a name."""
LONGEST_NAME = 200
"""Letters of a whole name; file systems take 255 bytes."""


def slug(text: str) -> str:
    """A text as letters a to z, digits, dots and underscores.

    Two texts never share one: where the text cannot be read back from its slug, a digest of it stands at the end.
    """
    plain = re.sub(r"[^a-z0-9.]+", "_", text.lower()).strip("_.")
    if plain and plain.replace("_", " ") == text and len(plain) <= LONGEST:
        return plain
    start = plain[:LONGEST].rstrip("_.")
    return f"{start}-{digest(text)}" if start else digest(text)


def run_name(prompt: str, varied: dict[str, str], seed: int) -> str:
    """The name of a run by what tells it from the others of its sweep: `a_red_car-guidance_scale_7.5-s0`.

    Args:
        varied: the settings that the sweep varies, by their short names, with their values as text.
    """
    parts = [slug(prompt), *(f"{key}_{slug(value)}" for key, value in varied.items()), f"s{seed}"]
    name = "-".join(parts)
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 20]}-{digest(name)}-s{seed}"


def digest(text: str) -> str:
    """Eight hexadecimal digits that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
