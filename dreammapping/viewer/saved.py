"""A run that is finished, or was stopped: its saved iterations on a slider, its start beside them."""

from dreammapping.finished import FinishedRun
from dreammapping.viewer.frames import side_by_side
from dreammapping.viewer.stage import Stage
from scene.gaussian_model import GaussianModel

APART = 1.2
"""World units between the start and the result: an object takes about one."""


class Saved:
    """The controls of a run's saved iterations.

    Args:
        iteration: the one that is shown first; `gaussians` are its.
    """

    def __init__(self, stage: Stage, run: FinishedRun, iteration: int, gaussians: GaussianModel) -> None:
        self._stage, self._run = stage, run
        self._steps = run.iterations
        self._known = {iteration: gaussians}
        gui = stage.server.gui
        self._about = gui.add_markdown("")
        with gui.add_folder("Run"):
            self._slider = gui.add_slider(
                "Saved",
                1,
                max(len(self._steps), 2),
                1,
                self._steps.index(iteration) + 1,
                disabled=len(self._steps) == 1,
            )
            self._beside = gui.add_checkbox("Start shape beside it", False)
        for control in (self._slider, self._beside):
            control.on_update(lambda _: self.show())
        self.show()

    def show(self) -> None:
        """Put the chosen iteration on the stage."""
        step = self._steps[min(int(self._slider.value), len(self._steps)) - 1]
        if step not in self._known:
            self._known = {step: self._run.gaussians(step)}  # one at a time: they can be large
        gaussians = self._known[step]
        self._about.content = (
            f"{quoted(self._run.prompt)}\n\niteration {step:,}, {len(gaussians):,} Gaussians"
        )
        self._stage.show(
            side_by_side(self._run.start(), gaussians, APART) if self._beside.value else gaussians
        )


def quoted(text: str) -> str:
    """A user's text as Markdown that shows it letter by letter, and never as markup."""
    return "".join(
        f"\\{letter}" if letter in r"\`*_{}[]()#+-.!|~$:/@" else _entity(letter) for letter in text
    )


def _entity(letter: str) -> str:
    return {"<": "&lt;", ">": "&gt;", "&": "&amp;", '"': "&quot;", "\n": " ", "\r": " "}.get(letter, letter)
