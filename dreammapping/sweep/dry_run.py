"""`sweep --dry-run`: what is in a list, and what it will take; nothing is run and no folder made."""

from collections import Counter
from pathlib import Path

from arguments import load
from dreammapping.sweep.cards import cards
from dreammapping.sweep.grid import Grid, varied_names
from dreammapping.sweep.ledger import LIST, Ledger
from dreammapping.sweep.overview import duration
from dreammapping.sweep.processes import Team
from dreammapping.sweep.status import DONE
from utils.errors import UserError

SHOWN = 20
"""Runs that are listed; of longer lists the first ones."""


def dry_run(grid: Grid, output: Path, cards_each: int = 1, workers: int | None = None) -> str:
    """The runs, their models, and a few timed iterations of each combination of settings, taken for all its runs.

    Raises:
        UserError: a combination of settings cannot be run; all that fail are named.
    """
    import tempfile

    from dreammapping.dry_run import try_out

    done = _done(output)
    size = Team(workers, cards_each).size(cards())
    runs = Counter(job.settings for job in grid.jobs if job.name not in done)
    lines = [job.name for job in grid.jobs[:SHOWN]]
    if len(grid.jobs) > SHOWN:
        lines.append(f"... and {len(grid.jobs) - SHOWN} more")
    lines.append(
        f"{len(grid.jobs)} runs in {output}, {len(done & {job.name for job in grid.jobs})} of them done"
    )
    short, total, problems = varied_names(grid.jobs), 0.0, []
    with tempfile.TemporaryDirectory() as folder:
        for name, text in grid.settings.items():
            job = next(job for job in grid.jobs if job.settings == name)
            path = Path(folder) / f"{name}.yaml"
            path.write_text(text, encoding="utf-8")
            config, _ = load(["--opt", str(path)], {"GuidanceParams.text": job.prompt, "seed": job.seed})
            label = ", ".join(f"{short[key]}={value}" for key, value in job.varied.items()) or "all"
            try:
                taken = try_out(config)
            except UserError as error:
                problems.append(f"{label}: {error}")
                continue
            total += runs[name] * taken.seconds * config.iterations
            lines.append(
                f"{label}: {config.GuidanceParams.model_key}, {config.GuidanceParams.guidance_method}, "
                f"{config.iterations} iterations of {taken.seconds:.2f} s, {taken.gib:.2f} GiB of memory, "
                f"about {duration(taken.seconds * config.iterations)} a run"
            )
    if problems:
        raise UserError("; ".join(problems))
    lines.append(f"about {duration(total / size)} with {size} worker{'s' if size > 1 else ''}")
    return "\n".join(lines) + "\n"


def _done(output: Path) -> set[str]:
    """Names of runs that the folder has already."""
    if not (output / LIST).is_file():
        return set()
    ledger = Ledger(output)
    known = {name: ledger.read(name) for name in ledger.jobs}
    return {name for name, status in known.items() if status is not None and status.state == DONE}
