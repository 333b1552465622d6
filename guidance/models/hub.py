"""The model hub and its cache: what is there, what to fetch, and what to say when it fails.

Respects HF_HOME, HF_ENDPOINT and HF_TOKEN. Imports the hub's client only when a hub is meant.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from utils.errors import UserError
from utils.files import atomic

LOCK = "dreammapping.json"
"""In a model's folder of the cache: revision, and SHA-256 and size of every file that was fetched."""
SETTINGS_SUFFIXES = (".json", ".txt", ".model")
WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")
PICKLED_WEIGHTS = ("pytorch_model.bin", "diffusion_pytorch_model.bin")
READ_BY_LOADERS = re.compile(
    r"(model|diffusion_pytorch_model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)"
)
"""Names of weights that are loaded unasked: those of other precisions have a further word in their names."""


def go_offline() -> None:
    """Ask no hub from here on; must come before the hub's client is first imported, which reads this once."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"


def is_offline() -> bool:
    """Whether no hub may be asked: by `go_offline`, or by the user's HF_HUB_OFFLINE."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def cached(hub_id: str, marker: str = "model_index.json") -> Path | None:
    """A model's cached snapshot, named by its revision; None without its `marker`, or for an id that no hub has."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(hub_id, marker)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def missing_parts(folder: Path, components: Sequence[str], without_weights: Sequence[str] = ()) -> list[str]:
    """Components of a diffusers folder that are not there, or lack their weights; without components, its own."""
    components = components or ("",)
    missing = [name for name in components if not (folder / name).is_dir()]
    weighty = [name for name in components if name not in missing and name not in without_weights]
    return missing + [f"{name or 'model'}'s weights" for name in weighty if not weight_files(folder, [name])]


def weight_files(folder: Path, components: Sequence[str]) -> list[Path]:
    """Weight files of a diffusers folder's components, or its own: safetensors, else pickles (weights alone)."""
    return [file for name in components or ("",) for file in _weights_in(folder / name)]


def _weights_in(folder: Path) -> list[Path]:
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    weights = [file for file in files if READ_BY_LOADERS.fullmatch(file.name) and file.is_file()]
    return [file for file in weights if file.suffix == ".safetensors"] or weights


def damaged_files(folder: Path, components: Sequence[str]) -> list[Path]:
    """Weight files whose length is not what their header says; reads the headers alone."""
    files = weight_files(folder, components)
    return [file for file in files if file.suffix == ".safetensors" and not _is_whole(file)]


def _is_whole(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt"):
            return True
    except SafetensorError:
        return False


def check_reachable(hub_id: str) -> None:
    """Ask the hub whether it has a model, without fetching it.

    Raises:
        OSError, RuntimeError, ValueError: it has not, or cannot be asked.
    """
    if is_offline():
        raise FileNotFoundError(hub_id)
    from huggingface_hub import HfApi

    with _asking():
        HfApi().model_info(hub_id, timeout=10)


def fetch(hub_id: str, components: Sequence[str]) -> Path:
    """Download once what a run needs of a model, check it, and record it in the cache; returns the snapshot.

    Left out: other precisions and frameworks, the safety checker, pickles where there are safetensors, and the
    original single-file checkpoints.

    Raises:
        OSError, RuntimeError, ValueError: of the hub's client.
        UserError: a file came damaged.
    """
    from huggingface_hub import HfApi, snapshot_download

    with _asking():
        info = HfApi().model_info(hub_id, files_metadata=True, timeout=30)
        files = {each.rfilename: each for each in info.siblings or []}
        wanted = wanted_files(list(files), components)
        folder = Path(snapshot_download(hub_id, allow_patterns=wanted))
    record = {"model": hub_id, "revision": folder.name, "files": {}}
    for name in wanted:
        path = folder / name
        digest = sha256(path)
        expected = files[name].lfs.sha256 if files[name].lfs else digest
        if digest != expected:
            blob = path.resolve()
            path.unlink()
            blob.unlink(missing_ok=True)
            raise UserError(f"{hub_id}: {name} came damaged and was deleted; fetch it again")
        record["files"][name] = {"sha256": digest, "bytes": path.stat().st_size}
    with atomic(folder.parents[1] / LOCK) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")
    return folder


def wanted_files(names: Sequence[str], components: Sequence[str]) -> list[str]:
    """The files of a model's repository that a run reads; with no components, those at its top."""
    wanted = [name for name in names if name in ("model_index.json", "config.json")]
    for component in components or ("",):
        prefix = f"{component}/" if component else ""
        inside = [name for name in names if name.startswith(prefix) and "/" not in name[len(prefix) :]]
        wanted += [name for name in inside if name.endswith(SETTINGS_SUFFIXES) and ".index." not in name]
        weights = [name for name in inside if name[len(prefix) :] in WEIGHTS]
        wanted += weights or [name for name in inside if name[len(prefix) :] in PICKLED_WEIGHTS]
    return list(dict.fromkeys(wanted))


def download(hub_id: str, files: Sequence[str]) -> Path:
    """Fetch some small files of a repository; returns the snapshot.

    Raises:
        OSError, RuntimeError, ValueError: of the hub's client.
    """
    if is_offline():
        raise FileNotFoundError(hub_id)
    from huggingface_hub import snapshot_download

    with _asking():
        return Path(snapshot_download(hub_id, allow_patterns=list(files)))


@contextmanager
def _asking() -> Iterator[None]:
    """The hub's client lets errors of its transport through, whose module changes with its version."""
    try:
        yield
    except (OSError, RuntimeError, ValueError):
        raise
    except Exception as error:
        raise ConnectionError(str(error)) from error


def recorded(folder: Path) -> dict[str, Any] | None:
    """What `fetch` recorded of a snapshot, None for other folders or other revisions."""
    path = folder.parents[1] / LOCK if len(folder.parents) > 1 else folder / LOCK
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    return record if record["revision"] == folder.name else None


def sha256(file: Path) -> str:
    """SHA-256 of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def cause_of(error: BaseException) -> str:
    """Why loading or fetching failed and what to do, in words. Walks the chain of causes."""
    from huggingface_hub import errors

    causes = list(_chain(error))

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if caused_by(errors.GatedRepoError):
        return "it is gated: accept its licence on its page, then run `hf auth login`"
    if caused_by(errors.RepositoryNotFoundError):
        return "the hub has no such model, or it is private: check the id, or run `hf auth login`"
    if caused_by(SafetensorError):
        return "a weight file is damaged: delete it and fetch it again"
    if any(isinstance(cause, OSError) and cause.errno == errno.ENOSPC for cause in causes):
        return "the disk is full: free space, or set HF_HOME to another disk"
    kinds = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, FileNotFoundError, ConnectionError)
    if caused_by(*kinds):
        if is_offline():
            return "it is not (wholly) on this machine and no hub may be asked: run once without --offline"
        return "it is not (wholly) on this machine and the hub cannot be reached: check the network or HF_ENDPOINT"
    return str(error).strip().partition("\n")[0]
