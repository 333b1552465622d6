"""HTML of ours: templates that escape every text, a policy for the browser, and what is embedded in a page.

No text of a run is part of a script, and by the page's own policy the browser runs no script but the page's, and loads
nothing from anywhere.
"""

import base64
import hashlib
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import jinja2

from utils.errors import UserError
from utils.files import write_text
from utils.images import read_picture
from utils.own_files import alone
from utils.own_pages import GENERATOR, is_as_left, is_ours, signed

LARGE_PICTURE = 60_000
"""Letters of an embedded PNG from which it becomes a WebP."""


def render(name: str, scripts: tuple[str, ...], **values: Any) -> str:
    """A template of this package, filled, with its style and scripts, which are all that the browser may run.

    Every value is escaped where it is put in, but for those that a template marks `safe`: `style`, `script`, and JSON
    of numbers.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = environment.loader.get_source  # type: ignore[union-attr]
    style = source(environment, "style.css")[0]
    script = "\n".join(source(environment, part)[0] for part in scripts)
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data: blob:; media-src data: 'self' file:; "
        f"frame-src 'self' file:; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    )
    html = environment.get_template(name).render(
        values, style=style, script=script, policy=policy, generator=GENERATOR
    )
    return signed(html.encode("utf-8", "replace").decode())  # a file's name may hold what is no letter


def refuse_to_replace(target: Path) -> None:
    """Raise UserError where somebody else's file is in the place of a page, or one of ours was changed since."""
    try:
        ours, as_left = is_ours(target), is_as_left(target)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(
            f"{target}: expected a place for a page, got: {error.strerror}; choose another"
        ) from error
    if not as_left:
        found = "one that was changed since" if ours else "another file"
        raise UserError(
            f"{target}: expected a page of ours or nothing, found {found}; move it, or choose --output FOLDER"
        )


def write(target: Path, html: str) -> None:
    """Write a page; what killed processes left of it half written is removed.

    Raises:
        UserError: it cannot be written, or somebody else's file is in its place.
    """
    with alone(target.parent, [target.name]):
        refuse_to_replace(target)
        write_text(target, html, durable=False)


def link(path: Path, place: Path) -> str:
    """A relative link from a page in `place`; paths of another drive are given whole."""
    try:
        return quote(os.fsencode(Path(os.path.relpath(path, place)).as_posix()))
    except ValueError:
        return path.resolve().as_uri()


def data_uri(path: Path, kind: str = "image/png") -> str | None:
    """A file as a data URI; None where there is none."""
    try:
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    except OSError:
        return None


def picture_uri(path: Path) -> str | None:
    """A PNG as a data URI, a large one as WebP; None where there is none, or a broken one."""
    found = data_uri(path)
    if found is None or len(found) <= LARGE_PICTURE:
        return found
    try:
        pixels = read_picture(path)
    except OSError:
        return None
    _, encoded = cv2.imencode(
        ".webp", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, 90]
    )
    return f"data:image/webp;base64,{base64.b64encode(encoded.tobytes()).decode()}"


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
