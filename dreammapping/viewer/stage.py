"""A browser's stage: Gaussians drawn there as splats, or here by our renderer, frame by frame for each camera.

viser carries both. Every client has a thread of its own that draws what its camera sees, small while it moves and large
when it rests; it draws the newest pose and skips those before it, so that a slow client delays nobody.
"""

import io
import logging
import math
import threading
import time
from contextlib import suppress
from typing import Any

import numpy as np
import viser
from jaxtyping import UInt8
from PIL import Image

from arguments import Config
from dreammapping.page.splats import most_visible
from dreammapping.viewer.frames import CHANNELS, Pose, covariances, frame
from gaussian_renderer import usable
from scene.gaussian_model import GaussianModel
from utils.spherical_harmonics import sh_dc_to_rgb

log = logging.getLogger(__name__)

MOST_SPLATS, MOST_LIVE_SPLATS = 1_000_000, 200_000
"""That a browser is sent, 32 bytes each: once, and every second or so."""
DRAFT, FINE, SAVED = 192, 640, 1024
"""Heights of frames in pixels: while a camera moves, when it rests, in a file."""
REST = 0.2
"""Seconds without a move after which a camera rests."""
BACKGROUNDS = {"white": 1.0, "grey": 0.5, "black": 0.0}
SPLATS, FRAMES = "splats, drawn by the browser", "frames of our renderer"
TURN = 24.0
"""Degrees a second of the turntable."""
RATE = 20.0
"""Turntable steps a second."""


class Stage:
    """The 3D view with the controls that every viewer has.

    Args:
        config: the run's, for its cameras and its background.
        most: splats that a browser is sent; those that show most of themselves.
    """

    def __init__(self, server: viser.ViserServer, config: Config, most: int) -> None:
        self.server, self.config, self._most = server, config, most
        self.gaussians: GaussianModel | None = None
        self._splats: Any = None
        self._painters: dict[int, _Painter] = {}
        server.scene.set_up_direction("+z")
        self.reset_camera()
        self._build_controls()
        server.on_client_connect(self._welcome)
        server.on_client_disconnect(self._farewell)
        threading.Thread(target=self._turn_forever, daemon=True).start()

    def _build_controls(self) -> None:
        gui = self.server.gui
        with gui.add_folder("View"):
            self.mode = gui.add_dropdown("Drawn as", (SPLATS, FRAMES))
            self.channel = gui.add_dropdown("Shows", CHANNELS, visible=False)
            self.degree = gui.add_slider("Harmonics", 0, 3, 1, 3, visible=False)
            plain = "white" if self.config.ModelParams.white_background else "black"
            self.background = gui.add_dropdown("Background", tuple(BACKGROUNDS), initial_value=plain)
            self.turning = gui.add_checkbox("Turntable", False)
            self.front = gui.add_button("Front")
            self.save = gui.add_button("Save picture")
        for control in (self.mode, self.channel, self.degree, self.background):
            control.on_update(lambda _: self.refresh())
        self.front.on_click(lambda event: self._to_front(event.client))
        self.save.on_click(lambda event: self._save_picture(event.client))

    def show(self, gaussians: GaussianModel) -> None:
        """Put other Gaussians on the stage."""
        self.gaussians = gaussians
        kept = most_visible(gaussians, self._most).cpu().numpy()
        centers = gaussians.means.detach().cpu().numpy()[kept]
        colors = self._colors(gaussians)[kept]
        opacities = gaussians.opacities.detach().cpu().numpy()[kept]
        if self._splats is not None:
            self._splats.remove()
        self._splats = self.server.scene.add_gaussian_splats(
            "/asset", centers, covariances(gaussians)[kept], colors, opacities
        )
        self.refresh()

    def _colors(self, gaussians: GaussianModel) -> np.ndarray:
        """Of band 0 alone: a browser's splats know no others."""
        direct = self.config.PipelineParams.convert_SHs_python
        dc = gaussians.sh_dc.detach()[:, 0]
        return (dc.sigmoid() if direct else sh_dc_to_rgb(dc)).clamp(0, 1).cpu().numpy()

    @property
    def as_frames(self) -> bool:
        """Whether our renderer draws."""
        return self.mode.value == FRAMES

    def refresh(self) -> None:
        """Draw again what every client sees."""
        self.channel.visible = self.as_frames
        self.degree.visible = (
            self.as_frames and self.gaussians is not None and self.gaussians.active_sh_degree > 0
        )
        if self._splats is not None:
            self._splats.visible = not self.as_frames
        for painter in list(self._painters.values()):
            painter.wake()

    def picture(self, pose: Pose, height: int) -> UInt8[np.ndarray, "H W 3"] | None:
        """What our renderer sees, as the controls ask for it; None before there is anything."""
        if self.gaussians is None:
            return None
        params = self.config.PipelineParams
        backend = usable(params.backend, self.gaussians.means.device)
        return frame(
            self.gaussians,
            pose,
            height,
            background=BACKGROUNDS[self.background.value],
            channel=self.channel.value,
            sh_degree=int(self.degree.value),
            options={"backend": backend, "direct_rgb": params.convert_SHs_python},
        )

    def plain(self) -> UInt8[np.ndarray, "H W 3"]:
        """The background alone."""
        return np.full((8, 8, 3), round(255 * BACKGROUNDS[self.background.value]), np.uint8)

    def reset_camera(self) -> None:
        """Let clients that come see the front, as the test views do."""
        cameras = self.config.GenerateCamParams
        polar = math.radians(cameras.default_polar)
        self.home = (
            0.0,
            cameras.default_radius * math.sin(polar),
            cameras.default_radius * math.cos(polar),
        )
        # the run's field of view spans the width of its images, the browser's the height
        self.fov = 2 * math.atan(math.tan(cameras.default_fovy / 2) * cameras.image_h / cameras.image_w)
        camera = self.server.initial_camera
        camera.position, camera.look_at, camera.up, camera.fov = (
            self.home,
            (0.0, 0.0, 0.0),
            (0.0, 0.0, 1.0),
            self.fov,
        )

    def _to_front(self, client: Any) -> None:
        if client is not None:
            with client.atomic():
                client.camera.position, client.camera.look_at = self.home, (0.0, 0.0, 0.0)
                client.camera.up_direction, client.camera.fov = (0.0, 0.0, 1.0), self.fov

    def _save_picture(self, client: Any) -> None:
        if client is None:
            return
        picture = self.picture(pose_of(client), SAVED)
        if picture is not None:
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "PNG")
            client.send_file_download("view.png", file.getvalue(), save_immediately=True)

    def _welcome(self, client: Any) -> None:
        painter = _Painter(self, client)
        self._painters[client.client_id] = painter
        client.camera.on_update(lambda _: painter.wake())
        painter.start()
        painter.wake()

    def _farewell(self, client: Any) -> None:
        painter = self._painters.pop(client.client_id, None)
        if painter is not None:
            painter.stop()

    def _turn_forever(self) -> None:
        angle = math.radians(TURN / RATE)
        turn = np.array(
            [[math.cos(angle), math.sin(angle), 0], [-math.sin(angle), math.cos(angle), 0], [0, 0, 1]]
        )
        while True:
            time.sleep(1 / RATE)
            if self.turning.value:
                for client in self.server.get_clients().values():
                    _turn(client, turn)


def _turn(client: Any, turn: np.ndarray) -> None:
    """Turn a client's camera around what it looks at, which viser moves along with its position."""
    target = np.asarray(client.camera.look_at)
    with client.atomic():
        client.camera.position = target + turn @ (np.asarray(client.camera.position) - target)
        client.camera.look_at = target


class _Painter(threading.Thread):
    """Draws for one client: the newest thing that it was woken for."""

    def __init__(self, stage: Stage, client: Any) -> None:
        super().__init__(daemon=True)
        self._stage, self._client = stage, client
        self._woken = threading.Event()
        self._stopped = False
        self._plain: str | None = (
            None  # the background that the client has, where nothing else is behind the splats
        )

    def wake(self) -> None:
        self._woken.set()

    def stop(self) -> None:
        self._stopped = True
        self._woken.set()

    def run(self) -> None:
        while True:
            self._woken.wait()
            self._woken.clear()
            if self._stopped:
                return
            with suppress(
                RuntimeError, ValueError, AssertionError
            ):  # a camera that is nowhere, a client that has left
                self._draw(DRAFT)
                if self._stage.as_frames and not self._woken.wait(REST):
                    self._draw(FINE)

    def _draw(self, height: int) -> None:
        stage, plain = self._stage, self._stage.background.value
        picture = stage.picture(pose_of(self._client), height) if stage.as_frames else None
        if picture is not None or self._plain != plain:
            shown = stage.plain() if picture is None else picture
            self._client.scene.set_background_image(shown, format="jpeg", jpeg_quality=90)
            self._plain = plain if picture is None else None


def pose_of(client: Any) -> Pose:
    """A client's camera."""
    camera = client.camera
    return Pose(tuple(camera.position), tuple(camera.wxyz), float(camera.fov), float(camera.aspect))
