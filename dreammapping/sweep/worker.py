"""A worker as a process of its own: `python -m dreammapping.sweep.worker FOLDER`; it ends when all runs are over."""

import argparse
import logging
import signal
import sys
from pathlib import Path
from types import FrameType

from dreammapping.sweep.ledger import Ledger
from dreammapping.sweep.retries import Patience
from dreammapping.sweep.shift import POLL, STALE, carry_on, shift
from dreammapping.sweep.status import Worker
from utils.console import complain
from utils.errors import UserError
from utils.parser import Parser

AGAIN = 75
"""Exit code: start me anew, for this process has lost its device."""
STOPPED = 143


def main(words: list[str] | None = None) -> int:
    """Work until nothing is left; returns the exit code: 0, `AGAIN`, `STOPPED`, or 2 where the folder is of no use."""
    parser = Parser(prog="python -m dreammapping.sweep.worker", description=__doc__)
    parser.add_argument("folder", type=Path, help="the sweep's")
    parser.add_argument("--index", type=int, default=0, help="of this worker, from 0")
    parser.add_argument("--count", type=int, default=1, help="workers in all")
    parser.add_argument("--shard", default="1/1", help="i/n: only each n-th run, from the i-th on")
    parser.add_argument("--only", nargs="+", metavar="RUN", help="of these runs, in this order")
    parser.add_argument("--processes", type=int, default=1, help="that share each run")
    parser.add_argument("--parent", type=int, help="stop when this process is no more the parent")
    parser.add_argument(
        "--losses", type=int, default=Patience.losses, help="lost attempts until a run is given up"
    )
    parser.add_argument(
        "--stale", type=float, default=STALE, help="seconds of silence after which a run is taken"
    )
    parser.add_argument("--poll", type=float, default=POLL, help="seconds between looks at runs of others")
    options = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s: %(message)s")
    try:
        return work(options)
    except UserError as error:
        complain(f"error: {error}")
        return 2


def work(options: argparse.Namespace) -> int:
    """The shift of this process."""
    ledger, worker = Ledger(options.folder), Worker.me()
    names = shard(options.only or list(ledger.jobs), options.shard)

    from dreammapping.sweep.bench import BEAT, Bench

    bench = Bench(
        ledger, worker, beat=min(BEAT, options.stale / 5), processes=options.processes, parent=options.parent
    )

    def stop(_number: int, _frame: FrameType | None) -> None:
        bench.stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)

    actions = shift(
        ledger, worker, names, start_of=bench.start_of, index=options.index, count=options.count,
        patience=Patience(losses=options.losses), stale=options.stale, poll=options.poll,
    )  # fmt: skip
    carry_on(actions, bench.carry_out, bench.stopping.wait, lambda: bench.over)
    return AGAIN if bench.broken else STOPPED if bench.stopping.is_set() else 0


def shard(names: list[str], part: str) -> list[str]:
    """The names of part i of n, "i/n" with i from 1.

    Raises:
        UserError: `part` is no such thing.
    """
    index, _, count = part.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UserError(f"--shard: expected i/n with i from 1 to n, got {part!r}; the first of eight is 1/8")
    return names[int(index) - 1 :: int(count)]


if __name__ == "__main__":
    sys.exit(main())
