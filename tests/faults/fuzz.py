"""A fuzzer for readers: damaged copies of good files are read in a child process, within limits of time and memory.

    report = fuzz(read, {"cube.ply": content, "cube.obj": other}, cases=2000, seed=0, folder=tmp_path)
    assert report.failures == [], report

`read` takes the path of a damaged file; its name is that of the good one, so that readers that choose by suffix work.
It may do anything: write the file's neighbours and read a folder, take the content as a command line, or check what it
has read and raise AssertionError. It succeeds or raises `UserError`, of one line; all else is a failure: any other
exception, a crash, more than `SECONDS`, or memory beyond twice the file and `MEMORY` (a `UserError` made from a
MemoryError is one too). `words` are put into text, beside the words that the good files hold.

The short form of a test runs some hundred cases of a fixed seed; the long one is marked slow and asks `long_form()`:

    @pytest.mark.slow
    def test_the_reader_bears_damage_at_length(tmp_path):
        cases, seed = long_form()
        assert fuzz(read, SEEDS, cases, seed, tmp_path).failures == []

FUZZ_CASES and FUZZ_SEED in the environment set both. Case `index` of a seed is always the same, wherever it runs:
`mutant(seeds, seed, index)` gives its name and content again. `fuzz` skips where there is no fork.
"""

import collections
import contextlib
import datetime
import faulthandler
import multiprocessing
import os
import random
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from utils.errors import UserError

SECONDS = 5.0
MEMORY = 500_000_000
"""Bytes that a reader may take beside twice the file's size."""

WARM_UP_SECONDS = 120.0

Reader = Callable[[Path], object]
Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Failure:
    """What went wrong with one damaged file."""

    index: int
    name: str
    what: str


@dataclass
class Report:
    """How a reader bore `read + refused + len(failures)` damaged files."""

    seed: int
    read: int = 0
    refused: int = 0
    failures: list[Failure] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = collections.Counter(failure.what for failure in self.failures)
        first = {failure.what: failure for failure in reversed(self.failures)}
        lines = [f"seed {self.seed}: {self.read} read, {self.refused} refused, {len(self.failures)} failures"]
        lines += [f"{n} x, as case {first[w].index} ({first[w].name}): {w}" for w, n in kinds.most_common()]
        return "\n".join(lines)


def long_form(cases: int = 20_000) -> tuple[int, int]:
    """Number of cases and seed of a long run: FUZZ_CASES and FUZZ_SEED, else `cases` and the day's; prints both."""
    cases = int(os.environ.get("FUZZ_CASES", cases))
    seed = int(os.environ.get("FUZZ_SEED", f"{datetime.datetime.now(datetime.UTC):%Y%m%d}"))
    print(f"FUZZ_CASES={cases} FUZZ_SEED={seed}")  # noqa: T201 (pytest shows it beside a failure)
    return cases, seed


def fuzz(
    reader: Reader,
    seeds: Files,
    cases: int,
    seed: int,
    folder: Path,
    *,
    words: Sequence[str] = (),
    seconds: float = SECONDS,
    memory: int = MEMORY,
) -> Report:
    """Read `cases` damaged copies of `seeds` (name to content) and tell how it went.

    Args:
        reader: takes a path in `folder`; every seed must be read without an error.
        words: what else may be put into text.
        seconds: Limit for each case; one that exceeds it is tried once more, as another program may have had its time.
        memory: Bytes for each case, beside twice its file.
    """
    if sys.platform != "linux":
        pytest.skip("needs Linux: fork, and limits on a process's address space")
    report = Report(seed)
    index, again = 0, False
    while index < cases:
        with _Child(reader, seeds, seed, index, cases, folder, words, memory) as child:
            while index < cases:
                what = child.answer(seconds)
                if what == _SLOW and not again:
                    again = True
                    break
                again = False
                if what == _READ:
                    report.read += 1
                elif what == _REFUSED:
                    report.refused += 1
                else:
                    report.failures.append(Failure(index, mutant(seeds, seed, index, words)[0], what))
                index += 1
                if child.gone:
                    break
    return report


_READ, _REFUSED, _SLOW = "read", "refused", "takes too long"


class _Child:
    """A process that reads case after case and says of each how it went; whoever waits too long ends it."""

    def __init__(
        self,
        reader: Reader,
        seeds: Files,
        seed: int,
        start: int,
        stop: int,
        folder: Path,
        words: Sequence[str],
        memory: int,
    ) -> None:
        fork = multiprocessing.get_context("fork")
        self.pipe, far = fork.Pipe(duplex=False)
        self.gone = False
        self.process = fork.Process(
            target=_read_all,
            args=(self.pipe, far, reader, seeds, seed, range(start, stop), folder, words, memory),
            daemon=True,
        )
        with warnings.catch_warnings():
            # Python warns of forks beside threads. The child runs on one, and takes no lock that another may hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process.start()
        far.close()

    def __enter__(self) -> "_Child":
        ready = self.answer(WARM_UP_SECONDS)
        if ready != _READ:
            self.__exit__()
            raise ValueError(f"expected files that can be read, got: {ready}")
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def answer(self, seconds: float) -> str:
        try:
            if self.pipe.poll(seconds):
                return self.pipe.recv()
        except EOFError:
            self.process.join()
            self.gone = True
            return f"the process died ({self.process.exitcode})"
        self.gone = True
        return _SLOW


def _read_all(
    parents: Connection,
    pipe: Connection,
    reader: Reader,
    seeds: Files,
    seed: int,
    indices: range,
    folder: Path,
    words: Sequence[str],
    memory: int,
) -> None:
    import resource

    parents.close()  # else this process would go on without anybody to hear it
    faulthandler.disable()  # pytest's, which would print every crash
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    for name, content in seeds.items():  # what a first call imports and keeps is not the damage's
        (folder / name).write_bytes(content)
        outcome = _outcome(reader, folder / name)
        if outcome != _READ:
            pipe.send(f"{name}: {outcome}")
            return
    pipe.send(_READ)
    for index in indices:
        name, content = mutant(seeds, seed, index, words)
        (folder / name).write_bytes(content)
        with _address_space(2 * len(content) + memory):
            outcome = _outcome(reader, folder / name)
        pipe.send(outcome)


@contextlib.contextmanager
def _address_space(more: int) -> Iterator[None]:
    """Let this process take at most `more` bytes beyond what it has."""
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + more, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _outcome(reader: Reader, path: Path) -> str:
    try:
        reader(path)
    except UserError as error:
        if "\n" in str(error) or not str(error):
            return f"not one line: {str(error)[:300]!r}"
        return f"memory: {error}" if _from_memory(error) else _REFUSED
    except BaseException as error:  # noqa: BLE001 (whatever a reader raises is what is looked for)
        return _described(error)
    return _READ


def _from_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _described(error: BaseException) -> str:
    """The error and the deepest place of ours that it came through, without numbers: one fault has one description."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "site-packages" not in frame.filename]
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
    text = re.sub(r"\d+", "#", " ".join(str(error).split()))[:120]
    return f"{type(error).__name__} at {place}: {text}"


def mutant(seeds: Files, seed: int, index: int, words: Sequence[str] = ()) -> tuple[str, bytes]:
    """Name and content of case `index`: one of `seeds`, damaged one to four times."""
    rng = random.Random(f"{seed}:{index}")
    name = rng.choice(sorted(seeds))
    content = seeds[name]
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        content = rng.choice(DAMAGES)(content, rng, seeds, words)
    return name, content


NUMBERS = (
    "0", "-1", "1", "2", "3", "4", "7", "127", "128", "255", "256", "65535", "65536", "2147483647", "2147483648",
    "4294967295", "1000000000", "1000000000000000000", "1" + 30 * "0", "9" * 5000, "nan", "-nan", "inf", "-inf",
    "1e308", "1e400", "-1e39", "1e-400", "0.5", "1.", ".", "-", "+1", "0x10", "1_000", "01", "", "null", "true",
    "\u0661",
)  # fmt: skip
BYTES = (
    b"\x00", b"\xff", b"\x7f", b"\x80", b"\n", b"\r", b" ", b'"', b"\\", b"{", b"[", b"\x00" * 4, b"\xff" * 4,
    b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff",
    b"\xff\xff\x7f\x7f", b"\x00\x00\x00\x00\x00\x00\xf8\x7f", b"\xff" * 8, b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3",
    b"\xe9",
)  # fmt: skip

_NUMBER = re.compile(rb"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")
_WORD = re.compile(rb"[A-Za-z_][A-Za-z_0-9]{1,40}")


def _place(content: bytes, rng: random.Random) -> int:
    """Somewhere in the file; half of the time among its first bytes, where formats keep what they promise."""
    return rng.randint(0, min(len(content), rng.choice((400, len(content)))))


def _cut(content: bytes, rng: random.Random, _seeds: Files, _words: Sequence[str]) -> bytes:
    return content[: _place(content, rng)]


def _flip(content: bytes, rng: random.Random, _seeds: Files, _words: Sequence[str]) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.randint(1, 8) if damaged else 0):
        damaged[min(_place(content, rng), len(damaged) - 1)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _overwrite(content: bytes, rng: random.Random, _seeds: Files, _words: Sequence[str]) -> bytes:
    at, new = _place(content, rng), rng.choice(BYTES)
    if rng.random() < 0.5:
        at -= at % 4
    return content[:at] + new + content[at + len(new) :]


def _insert(content: bytes, rng: random.Random, _seeds: Files, _words: Sequence[str]) -> bytes:
    at, new = _place(content, rng), rng.choice((*BYTES, rng.randbytes(rng.randint(1, 40))))
    return content[:at] + new * rng.choice((1, 1, 1, 2, 300)) + content[at:]


def _remove(content: bytes, rng: random.Random, _seeds: Files, _words: Sequence[str]) -> bytes:
    at = _place(content, rng)
    return content[:at] + content[at + rng.choice((1, 1, 2, 4, 12, 50, 400)) :]


def _repeat(content: bytes, rng: random.Random, _seeds: Files, _words: Sequence[str]) -> bytes:
    at, length = _place(content, rng), rng.choice((1, 4, 12, 50, 400))
    return content[:at] + content[at : at + length] * rng.choice((2, 2, 3, 50)) + content[at + length :]


def _change_number(content: bytes, rng: random.Random, _seeds: Files, _words: Sequence[str]) -> bytes:
    found = _early(_NUMBER, content, rng)
    if found is None:
        return content
    number = float(found.group())
    if rng.random() < 0.3 and abs(number) < 1e15:
        new = str(int(number) + rng.choice((-2, -1, 1, 2, 100)))
    else:
        new = rng.choice(NUMBERS)
    return content[: found.start()] + new.encode() + content[found.end() :]


def _change_word(content: bytes, rng: random.Random, seeds: Files, words: Sequence[str]) -> bytes:
    found = _early(_WORD, content, rng)
    if found is None:
        return content
    other = _early(_WORD, seeds[rng.choice(sorted(seeds))], rng)
    choices = [
        *(word.encode() for word in words),
        *([other.group()] if other else []),
        *map(str.encode, NUMBERS),
    ]
    return content[: found.start()] + rng.choice(choices) + content[found.end() :]


def _early(pattern: re.Pattern[bytes], content: bytes, rng: random.Random) -> re.Match[bytes] | None:
    """A match behind a random place, of which the early ones are likelier; the first one where none follows."""
    return pattern.search(content, _place(content, rng)) or pattern.search(content)


def _move_line(content: bytes, rng: random.Random, _seeds: Files, _words: Sequence[str]) -> bytes:
    """Take a line away, or put it elsewhere, or both."""
    lines = content.split(b"\n")
    reach = min(len(lines), rng.choice((30, len(lines))))
    at, to = rng.randrange(reach), rng.randrange(reach)
    line = lines[at] if rng.random() < 0.4 else lines.pop(at)
    if rng.random() < 0.7:
        lines.insert(to, line)
    return b"\n".join(lines)


def _splice(content: bytes, rng: random.Random, seeds: Files, _words: Sequence[str]) -> bytes:
    other = seeds[rng.choice(sorted(seeds))]
    return content[: _place(content, rng)] + other[_place(other, rng) :]


def _recode(content: bytes, rng: random.Random, _seeds: Files, _words: Sequence[str]) -> bytes:
    """Text as other programs and systems write it."""
    match rng.randrange(6):
        case 0:
            return content.decode("latin-1").encode("utf-16")
        case 1:
            return b"\xef\xbb\xbf" + content
        case 2:
            return content.replace(b"\n", b"\r\n")
        case 3:
            return content.replace(b"\n", b"\r")
        case 4:
            return content.replace(b" ", b"\t")
        case _:
            return content.decode("latin-1").encode("utf-8")


DAMAGES = (
    _cut, _flip, _overwrite, _insert, _remove, _repeat, _change_number, _change_number, _change_word, _move_line,
    _splice, _recode,
)  # fmt: skip
