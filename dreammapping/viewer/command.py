"""Look at a run in a browser: `python -m dreammapping view output/quickstart`.

The viewer listens on 127.0.0.1, at the next free port, and prints its address and a command for a tunnel. The browser
draws the asset; or our renderer does, with exact background, depth, opacity and harmonics.
"""

import argparse
import io
import logging
import os
import time
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from utils.command import exit_code
from utils.console import complain, write_out
from utils.errors import UserError
from utils.parser import Parser
from utils.paths import expanded

if TYPE_CHECKING:
    from dreammapping.finished import FinishedRun, Size

PORT = 8080


def main(words: list[str]) -> int:
    """The command line of `view`; returns the exit code."""
    parser = Parser(prog="python -m dreammapping view", description=__doc__)
    parser.add_argument("run", type=expanded, help="run folder, such as output/quickstart")
    parser.add_argument("--iteration", type=int, help="saved iteration to begin with (default: the last)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine alone)"
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"port, or the next free one (default {PORT})")
    parser.add_argument(
        "--beside", type=expanded, help=argparse.SUPPRESS
    )  # the exchange of a run that goes on
    options = parser.parse_args(words)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    return exit_code(lambda: _view(options), stopped="stopped; repeat the command to look again")


def _view(options: argparse.Namespace) -> int:
    if not 1 <= options.port <= 65535:
        raise UserError(f"--port: expected 1 to 65535, got {options.port}; {PORT} is usual")
    from dreammapping.viewer.needs import require_viser

    require_viser("view")
    from dreammapping.finished import FinishedRun
    from dreammapping.viewer.server import free_port, in_one_line, warn_if_open

    run = FinishedRun.open(options.run)
    iteration = None if options.beside else run.iteration(options.iteration)
    port = free_port(options.host, options.port)
    warn_if_open(options.host)
    if options.beside:
        _give_way()
        gaussians = None
    else:
        write_out(_said_size(run.size(iteration)))  # before anything is read
        gaussians = run.gaussians(iteration)  # and read before anybody listens

    for handler in logging.getLogger().handlers:
        handler.addFilter(in_one_line)

    import viser

    with redirect_stdout(io.StringIO()):  # it says its address in a way of its own
        server = viser.ViserServer(options.host, port, verbose=False)
    server.gui.configure_theme(show_logo=False, show_share_button=False, control_width="large")
    try:
        _serve(options, server, run, iteration, gaussians)
    finally:
        with redirect_stdout(io.StringIO()):
            server.stop()
    return 0


def _serve(
    options: argparse.Namespace, server: Any, run: "FinishedRun", iteration: int | None, gaussians: Any
) -> None:
    """Show a run until its process ends, or a saved one until Ctrl-C."""
    from dreammapping.viewer.server import directions
    from dreammapping.viewer.stage import MOST_LIVE_SPLATS, MOST_SPLATS, Stage

    stage = Stage(server, run.config, MOST_LIVE_SPLATS if options.beside else MOST_SPLATS)
    said = directions(options.host, server.get_port())
    if options.beside:
        from dreammapping.viewer.exchange import Exchange
        from dreammapping.viewer.running import Running, wait_for_the_end

        exchange = Exchange(options.beside)
        Running(stage, run, exchange)
        complain(said)  # the run's standard output is its own
        wait_for_the_end()
        exchange.remove()  # a run that was killed has not
        return
    from dreammapping.viewer.saved import Saved

    assert iteration is not None and gaussians is not None
    Saved(stage, run, iteration, gaussians)
    write_out(f"{said}Ctrl-C ends it.\n")
    while True:
        time.sleep(3600)


def _said_size(size: "Size") -> str:
    """How much there is to show."""
    here = size.memory + 250 * size.count  # what was read, and its covariances, colours and projections
    sent = 32 * size.count
    return (
        f"{size.count:,} Gaussians: {sent / 1e6:,.1f} MB for each browser, about {here / 1e6:,.0f} MB here\n"
    )


def _give_way() -> None:
    """Let the run have the machine: this process takes what is left of it."""
    import torch

    torch.set_num_threads(1)
    if hasattr(os, "nice"):
        os.nice(19)
