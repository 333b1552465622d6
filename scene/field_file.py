"""`field.safetensors`: a radiance field as a run leaves it (the layout is described in docs/radiance_fields.md)."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scene.field_start import Blob, Cuboid, Solid, Start
from scene.radiance_field import CHANNELS, HashGrid, RadianceField, VoxelGrid, hash_network
from utils.errors import UserError
from utils.files import atomic
from utils.inputs import regular_file

FORMAT, VERSION = "dreammapping.field", 1
FRAME = "z up, front +y"


def write_field(path: Path, field: RadianceField, iteration: int, prompt: str) -> None:
    """Write a field, whole or not at all.

    Raises:
        UserError: it is not finite, or the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in field.state_dict().items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"{path}: expected a finite field, got NaN or infinity in {name}; nothing was written"
            )
    form = {"kind": field.kind, "bound": field.bound, "density_scale": field.density_scale, **_form(field)}
    about = {"version": VERSION, "frame": FRAME, "iteration": iteration, "prompt": prompt, **form}
    with atomic(path) as temporary:
        try:  # one entry, because safetensors writes several in any order
            save_file(tensors, temporary, metadata={FORMAT: json.dumps(about)})
        except SafetensorError as error:
            raise OSError(str(error)) from error


def read_field(path: Path) -> RadianceField:
    """Read a field, on the CPU.

    Raises:
        UserError: the file is missing, cut short, of another layout or a later version, or not finite.
    """
    about, tensors = _opened(path)
    try:
        field = _build(about, tensors)
        field.load_state_dict(tensors)
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        said = str(error).splitlines()[-1].strip()[:200]
        raise UserError(
            f"{path}: expected the tensors that its own description names, got others ({said}); write it again"
        ) from error
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise UserError(f"{path}: expected a finite field, got NaN or infinity; write it again")
    return field


def iteration_of(path: Path) -> int:
    """The iteration that a field's file was written after.

    Raises:
        UserError: as `read_field`, but for the tensors.
    """
    return int(_opened(path, tensors=False)[0]["iteration"])


def _opened(path: Path, *, tensors: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What the file says about itself, and its tensors."""
    try:
        with safe_open(regular_file(path), framework="pt") as file:
            told = (file.metadata() or {}).get(FORMAT)
            found = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: expected a whole .safetensors file, got one that is broken or cut short ({error}); write it again"
        ) from error
    try:
        about = json.loads(told or "")
        version = about["version"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: expected a field as a run leaves it, got another file; name a field.safetensors"
        ) from error
    if version != VERSION:
        raise UserError(
            f"{path}: expected a field of version {VERSION}, got {version}; use the program that made it"
        )
    return about, found


def _form(field: RadianceField) -> dict[str, Any]:
    if not isinstance(field, HashGrid):
        return {}
    hidden = [layer for layer in field.network if isinstance(layer, torch.nn.Linear)][:-1]
    return {
        "cells": field.cells,
        "active": field.active,
        "smoothstep": field.smoothstep,
        "width": hidden[0].out_features if hidden else 0,
        "layers": len(hidden),
        "start": _start_form(field.start),
    }


def _start_form(start: torch.nn.Module) -> dict[str, Any]:
    match start:
        case Blob():
            return {"kind": "blob", "scale": start.scale, "std": start.std}
        case Cuboid():
            return {"kind": "box", "scale": start.scale, "half": list(start.half)}
        case Solid():
            return {"kind": "solid", "reach": start.reach}
    raise TypeError(f"start: expected a blob, a box or a solid, got {type(start).__name__}")


def _build(form: dict[str, Any], tensors: dict[str, Tensor]) -> RadianceField:
    """A field of the form with tensors of the right shapes, to be loaded."""
    bound, scale = float(form["bound"]), float(form["density_scale"])
    if form["kind"] == "grid":
        table = tensors["table"]
        if table.ndim != 2 or table.shape[1] != CHANNELS or round(len(table) ** (1 / 3)) ** 3 != len(table):
            raise ValueError(f"table of shape {list(table.shape)}")
        return VoxelGrid(torch.empty_like(table), bound, scale)
    if form["kind"] != "hash":
        raise ValueError(f"a field of kind {form['kind']}")
    tables = [torch.empty_like(tensors[f"tables.{level}"]) for level in range(len(form["cells"]))]
    inputs = sum(table.shape[1] for table in tables)
    network = hash_network(inputs, form["width"], form["layers"])
    start = _start(form["start"], bound, tensors)
    field = HashGrid(tables, form["cells"], network, start, bound, scale, smoothstep=form["smoothstep"])
    field.active = int(form["active"])
    return field


def _start(form: dict[str, Any], bound: float, tensors: dict[str, Tensor]) -> Start:
    match form["kind"]:
        case "blob":
            return Blob(form["scale"], form["std"])
        case "box":
            return Cuboid(form["scale"], tuple(form["half"]))
        case "solid":
            return Solid(torch.empty_like(tensors["start.table"]), bound, form["reach"])
    raise ValueError(f"a start of kind {form['kind']}")
