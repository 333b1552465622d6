"""A viewer's address: on this machine alone unless it is asked otherwise, at the next free port, said in words."""

import errno
import getpass
import ipaddress
import logging
import socket
from contextlib import suppress

from utils.errors import UserError

log = logging.getLogger(__name__)

LOCAL = "127.0.0.1"
TRIES = 100
"""Ports that are tried, from the one that was asked for."""


def in_one_line(record: logging.LogRecord) -> bool:
    """A filter that leaves of an error its one line: whoever reaches the port can send what no browser does."""
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        record.msg = f"{record.getMessage()} ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        record.args, record.exc_info, record.exc_text = (), None, None
    return True


def free_port(host: str, port: int) -> int:
    """The first port from `port` on at which nobody listens.

    Raises:
        UserError: `host` is no address of this machine, or all ports are taken.
    """
    refusal: OSError | None = None
    for candidate in range(port, min(port + TRIES, 65536)):
        try:
            family = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0][0]
            with socket.socket(family, socket.SOCK_STREAM) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind((host, candidate))
                return candidate
        except (socket.gaierror, UnicodeError) as error:  # UnicodeError: no name that a machine can have
            raise _no_address(host, getattr(error, "strerror", None) or "no name of a machine") from error
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise _no_address(host, error.strerror) from error
            refusal = error
    raise UserError(
        f"--port: expected a free one from {port} to {min(port + TRIES, 65536) - 1} at {host}, found none "
        f"({refusal and refusal.strerror}); choose another"
    )


def _no_address(host: str, reason: str) -> UserError:
    return UserError(
        f"--host: expected an address of this machine, got {host[:100]!r} ({reason}); leave it out for this "
        "machine alone"
    )


def is_local(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def directions(host: str, port: int) -> str:
    """Where a browser finds the viewer, here and from elsewhere."""
    shown = {"0.0.0.0": LOCAL, "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    there = "the same address" if shown == LOCAL else f"http://{LOCAL}:{port}"
    return (
        f"viewer: http://{shown}:{port}\n"
        f"from another machine: ssh -L {port}:{shown}:{port} {_user()}@{socket.gethostname()}, then {there} there\n"
    )


def warn_if_open(host: str) -> None:
    """Say what it means to listen to all the world."""
    if not is_local(host):
        log.warning("--host %s: whoever reaches this machine can see and steer the viewer", host)


def _user() -> str:
    with suppress(OSError, KeyError, ImportError):
        return getpass.getuser()
    return "user"
