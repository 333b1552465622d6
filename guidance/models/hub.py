"""The model hub and its cache: what is there, what to fetch, and what to say when it fails.

Respects HF_HOME, HF_ENDPOINT and HF_TOKEN. Imports the hub's client only when a hub is meant.
"""

import errno
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from guidance.models import weights
from guidance.models.libraries import is_offline
from guidance.models.names import WITHOUT_WEIGHTS
from utils.errors import UserError
from utils.files import atomic

LOCK = "dreammapping.json"
"""In a model's folder of the cache: revision, and SHA-256 and size of every file that was fetched."""
SETTINGS_SUFFIXES = (".json", ".txt", ".model")


def cached(hub_id: str, marker: str = "model_index.json") -> Path | None:
    """A model's cached snapshot, named by its revision; None without its `marker`, or for an id that no hub has."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(hub_id, marker)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def names_in(folder: Path) -> list[str]:
    """The files of a model's folder and of those in it, relative to it."""
    files = [*folder.glob("*"), *folder.glob("*/*")]
    return [file.relative_to(folder).as_posix() for file in files if file.is_file()]


def missing_parts(folder: Path, components: Sequence[str], without_weights: Sequence[str] = ()) -> list[str]:
    """What a folder on this machine lacks of a model, for messages."""
    return weights.missing_parts(names_in(folder), components, without_weights)


def weight_files(folder: Path, components: Sequence[str]) -> list[Path]:
    """The weight files that are loaded of a diffusers folder's components, or of itself."""
    sets = weights.weight_sets(names_in(folder), components).values()
    return [folder / name for each in sets for name in each.files]


def damaged_files(folder: Path, components: Sequence[str]) -> list[Path]:
    """Weight files whose length is not what their header says, and broken lists of them; reads no weights."""
    sets = weights.weight_sets(names_in(folder), components).values()
    files = [folder / name for each in sets for name in each.files if not each.pickled]
    lists = [(folder / each.index, each.files) for each in sets if each.index]
    return [file for file in files if not _is_whole(file)] + [
        index for index, parts in lists if not _names(index, parts)
    ]


def _is_whole(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


def _names(index: Path, parts: Sequence[str]) -> bool:
    """Whether a list of weights names these files and no others."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        named = set(content["weight_map"].values())
        return isinstance(content["metadata"], dict) and named == {name.rpartition("/")[2] for name in parts}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


def check_reachable(hub_id: str, components: Sequence[str]) -> list[str]:
    """Ask the hub whether it has a model, without fetching it; what the model lacks, for messages.

    Raises:
        OSError, RuntimeError, ValueError: it has not, or cannot be asked.
    """
    if is_offline():
        raise FileNotFoundError(hub_id)
    from huggingface_hub import HfApi

    with _asking():
        info = HfApi().model_info(hub_id, timeout=10)
    names = [each.rfilename for each in info.siblings or []]
    return weights.missing_parts(names, components, WITHOUT_WEIGHTS)


def fetch(hub_id: str, components: Sequence[str]) -> Path:
    """Download once what a run needs of a model, check it, and record it in the cache; returns the snapshot.

    Left out: further precisions and frameworks, the safety checker, pickles, and the original single-file checkpoints.

    Raises:
        OSError, RuntimeError, ValueError: of the hub's client.
        UserError: the hub has not all of it, or a file came damaged.
    """
    from huggingface_hub import HfApi, snapshot_download

    with _asking():
        info = HfApi().model_info(hub_id, files_metadata=True, timeout=30)
        files = {each.rfilename: each for each in info.siblings or []}
        if missing := weights.missing_parts(list(files), components, WITHOUT_WEIGHTS):
            raise UserError(f"{hub_id}: the hub has {'; '.join(missing)}")
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
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return folder


def wanted_files(names: Sequence[str], components: Sequence[str]) -> list[str]:
    """The files of a model's repository that a run reads; with no components, those at its top."""
    wanted = [name for name in names if name in ("model_index.json", "config.json")]
    sets = weights.weight_sets(names, components)
    for component in components or ("",):
        settings = [name for name in weights.inside(names, component) if name.endswith(SETTINGS_SUFFIXES)]
        wanted += [name for name in settings if ".index." not in name]
        if component in sets:
            wanted += [*sets[component].files, *filter(None, [sets[component].index])]
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
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record if record["revision"] == folder.name and isinstance(record["files"], dict) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None  # damaged: the files are hashed again


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
