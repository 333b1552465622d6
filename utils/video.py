"""H.264 videos, streamed to FFmpeg frame by frame: whole files that players open, or none and the reason."""

import contextlib
import os
import re
import secrets
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from jaxtyping import UInt8

from utils.errors import UserError
from utils.files import atomic

Write = Callable[[UInt8[np.ndarray, "H W 3"]], None]
"""Takes the next frame, as RGB; all have the first one's size."""
QUALITY = 10
"""FFmpeg's constant rate factor, 0 (lossless) to 51."""


@contextlib.contextmanager
def video(path: Path, fps: int = 30) -> Iterator[Write]:
    """Yield what takes the frames of an MP4 that browsers play; it is at `path` when the block ends without an error.

    No frame is kept. Odd sizes lose their last row or column, as the format demands.

    Raises:
        UserError: there is no encoder, it fails, also in its last moment, or the file does not hold every frame.
    """
    with atomic(path) as temporary, _encoder(temporary, path, fps) as write:
        yield write


def try_encoder(folder: Path) -> None:
    """Encode a few frames into a file of `folder`, and remove it.

    Raises:
        UserError: as `video`.
    """
    trial = folder / f".trial.{secrets.token_hex(4)}.partial.mp4"
    try:
        with _encoder(trial, folder, 30) as write:
            for value in (0, 100, 200):
                write(np.full((64, 64, 3), value, np.uint8))
    finally:
        with contextlib.suppress(OSError):  # never made
            trial.unlink()


def frame_count(path: Path) -> int:
    """The frames that a video's index lists; 0 where no player opens it."""
    # absolute, because "a:b" would be a protocol; bytes, because a name that is no UTF-8 would end the process
    reader = cv2.VideoCapture(os.fsencode(path.absolute()))  # pyright: ignore[reportArgumentType, reportCallIssue]
    try:
        return int(reader.get(cv2.CAP_PROP_FRAME_COUNT)) if reader.isOpened() else 0
    finally:
        reader.release()


@contextlib.contextmanager
def _encoder(target: Path, path: Path, fps: int) -> Iterator[Write]:
    """As `video`, into `target`, which messages call `path`."""
    with contextlib.ExitStack() as kept:
        try:  # a pipe that nobody reads would fill and stop FFmpeg
            said = kept.enter_context(tempfile.TemporaryFile())
        except OSError as error:  # a container whose own disk is read only
            raise UserError(
                f"{path}: the video cannot be encoded (no temporary file: {error.strerror}); set TMPDIR to a folder "
                "that can be written"
            ) from error
        encoder = _Encoder(target, path, fps, said)
        try:
            yield encoder.write
            encoder.finish()
        finally:
            encoder.stop()


class _Encoder:
    """FFmpeg as a process that reads raw frames, and says what is wrong into a file."""

    def __init__(self, target: Path, path: Path, fps: int, said: IO[bytes]) -> None:
        self._target, self._path, self._fps, self._said = target, path, fps, said
        self._process: subprocess.Popen[bytes] | None = None
        self._frames = 0

    def write(self, frame: UInt8[np.ndarray, "H W 3"]) -> None:
        height, width = (side // 2 * 2 for side in frame.shape[:2])
        try:
            self._process = self._process or self._start(width, height)
            assert self._process.stdin is not None
            self._process.stdin.write(np.ascontiguousarray(frame[:height, :width]).data)
        except OSError as error:
            raise self._failure(str(error)) from error
        self._frames += 1

    def finish(self) -> None:
        """Wait for the end of the file, and look whether it is whole."""
        if self._process is None:
            raise self._failure("it has no frame")
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except OSError as error:
            raise self._failure(str(error)) from error
        code = self._process.wait()
        if code != 0:
            raise self._failure(f"FFmpeg ended with code {code}")
        found = frame_count(self._target)
        if found != self._frames:
            raise self._failure(f"the file holds {found} of {self._frames} frames")

    def stop(self) -> None:
        """End the process, unless it has ended."""
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(OSError):
                self._process.communicate()  # closes its standard input, too

    def _start(self, width: int, height: int) -> subprocess.Popen[bytes]:
        try:
            import imageio_ffmpeg

            program = imageio_ffmpeg.get_ffmpeg_exe()
        except (ImportError, RuntimeError) as error:
            raise self._failure("there is no FFmpeg") from error
        words = f"-y -v error -f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {self._fps} -i - -an".split()
        words += f"-vcodec libx264 -pix_fmt yuv420p -crf {QUALITY}".split()
        return subprocess.Popen(
            [program, *words, str(self._target.absolute())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            start_new_session=True,  # Ctrl-C is for us alone: a video that is begun is finished
        )

    def _failure(self, reason: str) -> UserError:
        """What to say: FFmpeg's own first words where it has any."""
        self.stop()
        self._said.seek(0)
        words = _first_line(self._said.read()) or reason
        return UserError(
            f"{self._path}: the video cannot be encoded ({words}); free space, or point IMAGEIO_FFMPEG_EXE at an "
            "FFmpeg with libx264"
        )


def _first_line(text: bytes) -> str:
    """The first thing that FFmpeg said, without the address of the part that says it."""
    lines = [re.sub(r"^\[[^]]*\] *", "", line) for line in text.decode("utf-8", "replace").splitlines()]
    return next((line.strip() for line in lines if line.strip()), "")
