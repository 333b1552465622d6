"""No figure without its source: what the documents say is what the committed files of measurements hold."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from arguments import Config, VDMParams, load
from benchmarks import methods, rasterizer
from benchmarks.command import RESULTS
from dreammapping import gaussians, memory, optimization, outputs, pace
from dreammapping.evaluation import distances, pictures, references, statistics
from dreammapping.mesh import make as meshes
from dreammapping.page import page as pages
from dreammapping.page import splats
from dreammapping.reproduction import claims, figures, prompts, report
from dreammapping.reproduction import methods as quality
from dreammapping.reproduction.cells import CellStore
from dreammapping.reproduction.table import Plan, standing
from dreammapping.sweep import bench, shift
from dreammapping.sweep import dry_run as sweep_dry_run
from dreammapping.viewer import exchange, stage
from guidance.degradation import build_degradation
from toybox import training, world
from toybox.report import save_report
from utils.device import GIB
from utils.repository import QUICKSTART, ROOT

FRONT_PAGE, DOCS = ROOT / "README.md", ROOT / "docs"
SUBMODULES = ROOT / "submodules"


def page(path: Path) -> str:
    """A page's text, its lines joined, so that a sentence is found wherever it is wrapped."""
    return " ".join(path.read_text(encoding="utf-8").split())


def measured(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def rows(text: str) -> list[str]:
    """The lines of the tables in a text; the notes around them say what today's code would make otherwise."""
    return [line for line in text.splitlines() if line.startswith("|")]


def between(path: Path, begin: str, end: str) -> str:
    return path.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0]


def test_the_comparison_over_prompts_is_that_of_its_runs():
    _, text = prompts.reproduce(Plan(), train=False)
    assert rows(between(prompts.REPORT, prompts.BEGIN, prompts.END)) == rows(text) != []


def test_the_front_page_has_the_comparison_with_its_spread():
    store = CellStore(prompts.RESULTS / "prompts.json")
    results, _ = standing(store, Plan(), prompts.METHODS, prompts.all_prompts(prompts.TUNED_ON))
    shown = between(prompts.FRONT_PAGE, prompts.BEGIN, prompts.END).strip()
    assert shown == prompts.summary(results), "python -m dreammapping reproduce prompts --report --write"


def test_the_comparison_of_methods_is_that_of_its_runs():
    _, text = quality.reproduce(Plan(prompts=2), [], train=False)
    assert rows(between(quality.REPORT, quality.BEGIN, quality.END)) == rows(text) != []


@pytest.mark.parametrize("name", ["methods", "methods_full"])
def test_what_a_method_costs_is_what_was_measured(name):
    lines = (DOCS / "methods.md").read_text(encoding="utf-8").splitlines()
    assert set(methods.table(measured(name)["methods"]).splitlines()) <= set(lines)


def test_the_rasterizers_speed_is_what_was_measured():
    result = measured("rasterizer")
    lines = (DOCS / "rasterizer.md").read_text(encoding="utf-8").splitlines()
    assert set(rows(rasterizer.table(result))) <= set(lines)
    one, two = result["neighbors"]
    assert (
        f"{1000 * one['distCUDA2']:.0f} ms on one thread, {1000 * two['distCUDA2']:.0f} ms on two, {two['ratio']:.2f} "
        f"times scipy's tree, built and queried on both cores in the same run ({1000 * two['cKDTree']:.0f} ms)"
    ) in page(DOCS / "rasterizer.md")

    bounds = [each[name] for each in result["scenes"] for name in ("over_bound_forward", "over_bound")]
    assert f"at {min(bounds):.0f} to {max(bounds):.0f} times the arithmetic" in page(DOCS / "rasterizer.md")

    slower = [each["speedups"]["reference"] for each in result["scenes"]]
    for path in (FRONT_PAGE, ROOT / "Makefile", SUBMODULES / "diff-gaussian-rasterization" / "README.md"):
        assert f"takes {min(slower):.0f} to {max(slower):.0f} times as long" in page(path), path


def test_the_submodules_say_what_was_measured():
    result = measured("rasterizer")
    scenes = {(each["gaussians"], each["size"], each["threads"]): each for each in result["scenes"]}
    text = page(SUBMODULES / "diff-gaussian-rasterization" / "README.md")
    for count, size, _ in list(scenes)[::2]:
        one, two = scenes[count, size, 1], scenes[count, size, 2]
        times = [
            f"{_two_digits(1000 * each['forward'])} / {_two_digits(1000 * each['forward_backward'])}"
            for each in (one, two)
        ]
        assert (
            f"| {count // 1000}k, {size}x{size} | {times[0]} | {times[1]} | {two['speedups']['reference']:.0f} times | "
            f"{two['peak_memory'] / 1e6:.0f} MB |"
        ) in text
    one = result["neighbors"][0]
    assert (
        f"{one['distCUDA2']:.2f} s of one core; scipy's tree takes {one['cKDTree']:.2f} s of two"
    ) in page(SUBMODULES / "simple-knn" / "README.md")


def _two_digits(value: float) -> str:
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}"


def test_the_papers_setting_takes_what_was_measured():
    result = measured("full_size")
    seconds, gib = result["seconds_per_iteration"], result["peak_memory_bytes"] / GIB
    text = page(DOCS / "results.md")
    assert f"| an iteration | {seconds:.0f} s |" in text
    assert (
        f"| U-Net evaluations for each view | {result['evaluations_per_view']['forward']:.1f} forward" in text
    )
    assert f"| memory at the peak | {gib:.1f} GiB |" in text
    days = 5000 * seconds / 86400
    assert f"{seconds:.0f} s an iteration, so about {days:.0f} days in all, and {gib:.1f} GiB" in page(
        FRONT_PAGE
    )
    assert (round(seconds / result["views"], 1), round(gib, 1)) == (
        pace.SECONDS_A_VIEW,
        pace.GIB_OF_FOUR_VIEWS,
    )


def test_an_iteration_takes_what_was_measured():
    result, text = measured("iteration"), page(DOCS / "results.md")
    encoder, unet = (1000 * value for value in result["floor_parts"].values())
    total = 1000 * result["iteration"]
    assert f"| floor: U-Net, encoder | {unet:.0f} ms, {encoder:.0f} ms |" in text
    assert f"| an iteration | {total:.0f} ms, {result['ratio']:.2f} times the floor" in text
    assert f"what is above the floor ({total - 1000 * result['floor']:.0f} ms in the first pass)" in text
    second = 1000 * sum(result["iteration_parts"].values())
    parts = ", ".join(f"{name} {1000 * value:.0f}" for name, value in result["iteration_parts"].items())
    assert f"in means of a second pass of {second:.0f} ms: {parts}." in text
    config, _ = load(["--opt", str(QUICKSTART)])
    minutes = config.iterations * result["iteration"] / 60
    assert (
        f"for {config.iterations} iterations, about {minutes:.0f} minutes on two idle cores of an AMD EPYC"
        in page(FRONT_PAGE)
    )


def test_what_a_single_iteration_of_a_method_is_worth():
    rows = measured("methods_full")["methods"]
    seconds = [each["seconds"] for each in rows if (each["forward"], each["backward"]) == (2.0, 0.0)]
    assert f"Methods with two forwards lie between {min(seconds):.0f} and {max(seconds):.0f} s" in page(
        DOCS / "methods.md"
    )


def test_what_a_card_took_is_that_of_the_files_and_said_alike_everywhere():
    said, front = page(DOCS / "results.md"), page(FRONT_PAGE)
    run = measured("h200/iteration")
    floor, whole = 1000 * run["floor"], 1000 * run["iteration"]
    minutes = 5000 * run["iteration"] / 60
    assert (
        f"{whole:.1f} ms, {run['ratio']:.2f} times its floor of {floor:.1f} ms: {minutes:.1f} minutes for 5000"
        in said
    )
    assert (
        f"takes {whole:.0f} ms, {run['ratio']:.2f} times its floor, U-Net and encoder without Perp-Neg: "
        f"{minutes:.1f} minutes for 5000"
    ) in front
    assert f"an iteration took {whole:.0f} ms on an H200" in page(DOCS / "method.md")
    unet = run["iteration_parts"]["U-Net, forward"]
    parts = [*run["floor_parts"].values(), run["iteration_parts"]["operator, forward"]]
    assert f"| {'; '.join(f'{1000 * seconds:.1f} ms' for seconds in parts)} |" in said
    assert (
        f"made {run['evaluations_per_iteration']:.1f} of them, which took {1000 * unet:.1f} ms in place of "
        f"{1000 * parts[1]:.1f}"
    ) in said
    assert f"before it; memory at the peak, allocated | {run['warm_up_seconds']:.0f} s;" in said

    forms = {name: row["both_ms"] for name, row in measured("h200/encoder")["encoder"].items()}
    searched, plain, own = (
        forms[name] for name in ("eager, search", "compiled as PyTorch does", "compiled as in a run")
    )
    assert (
        f"| {searched:.1f} ms eager with cuDNN's search, {plain:.1f} compiled as PyTorch does, {own:.1f} as in a run |"
        in said
    )
    assert f"takes {own:.1f} ms, forward and backward, where PyTorch's own take {plain:.1f}" in page(
        DOCS.parent / "CHANGELOG.md"
    )

    eager, graphs = (1000 * measured(f"h200/quickstart_{name}")["iteration"] for name in ("eager", "graphs"))
    assert f"an iteration of the quick start | {eager:.1f} ms, with CUDA graphs {graphs:.1f} ms |" in said
    for text in (front, page(DOCS.parent / "CHANGELOG.md")):
        assert (
            f"an iteration of the quick start takes {graphs:.1f} ms instead of {eager:.1f} on an H200" in text
        )

    asset, truth = (measured("h200/judge")[name] for name in ("asset", "truth"))
    judged = f"R-precision {asset['r_precision']:.2f}, similarity {asset['similarity']:.1f}"
    judged += rf" \(true object {truth['similarity']:.1f}\)"
    quick = re.search(rf"the quick start with CUDA graphs \| ([\d.]+) s; {judged}", said)
    assert quick and f"the quick start takes {float(quick[1]):.0f} s" in front


def test_the_rasterizer_on_a_card_is_as_its_file_says():
    said, scenes = page(DOCS / "results.md"), measured("h200/rasterizer")["scenes"]
    ratios, sizes = (
        [scene["speedups"]["gsplat"] for scene in scenes],
        [scene["peak_memory"] / 1e6 for scene in scenes],
    )
    for scene, ratio, size in zip(scenes, ratios, sizes, strict=True):
        row = (
            f"{scene['size']} px | {1000 * scene['forward_backward']:.2f} ms | {ratio:.3f} | {size:.0f} MB |"
        )
        assert re.search(rf"\| {scene['gaussians']:,}(?: Gaussians)?, {re.escape(row)}", said)
    found = page(DOCS / "rasterizer.md")
    assert f"gsplat takes {min(ratios):.3f} to {max(ratios):.3f} times as long" in found
    assert f"{min(sizes):.0f} to {max(sizes):.0f} MB" in found


ONCE = re.compile(r"\b(measured|made)( by hand)?,? once\b|\bonce, on\b", re.IGNORECASE)


@pytest.mark.parametrize("path", [FRONT_PAGE, *sorted(DOCS.glob("*.md"))], ids=lambda path: path.name)
def test_what_was_measured_once_says_when_and_at_which_commit(path):
    parts = re.split(r"\n\s*\n|\n(?=- |\| )", path.read_text(encoding="utf-8"))
    told = [" ".join(part.split()) for part in parts]
    once = [part for part in told if ONCE.search(part)]
    assert [
        part
        for part in once
        if not (re.search(r"\b20\d\d-\d\d-\d\d\b", part) and re.search(r"\bcommit [0-9a-f]{7}\b", part))
    ] == []


def test_a_field_takes_what_was_measured():
    text, lines = (
        page(DOCS / "radiance_fields.md"),
        (DOCS / "radiance_fields.md").read_text("utf-8").splitlines(),
    )
    result = measured("field_iteration")
    encoder, unet = (1000 * value for value in result["floor_parts"].values())
    assert f"| floor: U-Net, encoder | {unet:.0f} ms, {encoder:.0f} ms |" in lines
    assert (
        f"| an iteration | {1000 * result['iteration']:.0f} ms, {result['ratio']:.2f} times the floor |"
        in lines
    )
    total = 1000 * sum(result["iteration_parts"].values())
    parts = ", ".join(f"{name} {1000 * value:.0f}" for name, value in result["iteration_parts"].items())
    assert f"in means of a second pass of {total:.0f} ms: {parts} ms." in text

    compared = measured("field_methods")
    assert set(methods.table(compared["methods"]).splitlines()) <= set(lines)
    assert f"--iterations {compared['iterations']} --json benchmarks/results/field_methods.json" in text
    assert f"--iterations {result['iterations']} --json benchmarks/results/field_iteration.json" in text
    over_sds = {row["method"]: row["over_sds"] for row in compared["methods"]}
    assert f"VSD takes {over_sds['vsd'] / over_sds['vdm']:.2f} times as long as VDM here" in text


def test_the_quick_start_of_fields_is_what_its_run_was():
    kept, text = measured("field_quickstart"), page(DOCS / "radiance_fields.md")
    run, judged = kept["run"], kept["judge"]
    settings, _ = load(["--opt", str(ROOT / "configs" / "field" / "quickstart.yaml")])
    assert (run["iterations"], run["prompt"]) == (
        settings.OptimizationParams.iterations,
        settings.GuidanceParams.text,
    )
    assert (
        f"after the {run['iterations']} iterations of `quickstart.yaml`: {run['seconds'] / 60:.0f} minutes"
        in text
    )
    assert f"and {run['peak_memory_bytes'] / GIB:.1f} GiB on {['', 'one', 'two'][run['cpus']]} cores" in text
    asset, truth, start = (judged[name] for name in ("asset", "truth", "start"))
    assert asset["r_precision"] == 1 and asset["view_accuracy"] <= start["view_accuracy"]
    assert f"in all {judged['views']} views (R-precision {asset['r_precision']:.2f})" in text
    assert (
        f"finds the right view word in only {asset['view_accuracy']:.2f} of them, no more than in those of the "
        f"untrained start (the true object: {truth['view_accuracy']:.2f})" in text
    )


def test_what_sweeps_cost_is_what_was_measured():
    text, played = page(DOCS / "sweeps.md"), measured("sweep_simulate")
    assert (played["runs"], played["workers"], played["failures"]) == (10000, 256, 0.05)
    assert (
        f"{played['done_once']:,} runs done once, {played['failed_for_good']} failed for good, none lost"
        in text
    )
    assert (
        f"{played['deaths']} workers died; the sweep would have taken {played['hours']:.1f} h, and "
        f"{played['hours_always_at_work']:.1f} h if all workers had always been busy"
    ) in text
    median, most, longest = (
        1000 * played["claim_seconds"][name] for name in ("median", "of_99_percent", "longest")
    )
    assert f"{median:.0f} ms (the median; {most:.0f} ms in 99 of 100, {longest:.0f} ms at most)" in text
    overhead, replicas, scaling = (measured(f"sweep_{name}") for name in ("overhead", "replicas", "scaling"))
    second, first = overhead["second"]["start"], overhead["first"]["start"]
    assert f"that is {second:.2f} s, where the first run, which loads the prior, takes {first:.1f} s" in text
    one, two = replicas["one_process"], replicas["two_processes"]
    assert f"take {two:.3f} s an iteration where one process with two threads takes {one:.3f} s" in text
    assert f"(medians of three turns), {two / one:.2f} times as long" in text
    assert (
        f"{scaling['one_worker'] / scaling['two_workers']:.2f} times as fast as one worker with both" in text
    )


def test_what_memory_plans_take_is_what_was_counted():
    plans = [f"{measured('memory_plans')['gib'][name]:.1f}" for name in ("8gb", "12gb", "24gb", "max")]
    assert f"take {', '.join(plans[:3])} and {plans[3]} GiB" in page(FRONT_PAGE)


def test_the_priors_card_and_what_is_said_of_it_are_its_reports(tmp_path):
    prior = ROOT / "toybox" / "prior"
    report = json.loads((prior / "report.json").read_text(encoding="utf-8"))
    save_report(report, tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == (prior / "README.md").read_text(
        encoding="utf-8"
    )
    text = page(DOCS / "results.md")
    for name, per_step in (("clip", "pictures"), ("unet", "latents")):
        made = report["stages"][name]
        assert f"{made['steps']:,} steps of {made['batch']} {per_step}" in text
        assert re.search(rf"{made['steps']:,} steps of [^|]*\| {made['seconds']} s", text)
    assert f"in {report['stages']['vae']['seconds']} s on one CPU thread" in text
    shares = [100 * report[f"samples_{name}_pairs"]["pair"] for name in ("train", "held_out")]
    assert "recognised in {:.1f} % (training pairs) and {:.1f} % (held-out pairs)".format(*shares) in page(
        ROOT / "CHANGELOG.md"
    )


def parameters_of_the_operator() -> int:
    operator = build_degradation(VDMParams(), (4, 64, 64), torch.Generator().manual_seed(0))
    return sum(parameter.numel() for parameter in operator.parameters())


def forwards_of_the_corrective() -> int:
    """Two for each step of its samples, with guidance; one for each view and step of its training."""
    lmc = Config().LMCParams
    return 2 * lmc.lmc_bank * lmc.lmc_sampling_steps + 4 * lmc.lmc_steps


def runs_of(name: str) -> int:
    """Of a figure where there is no GPU."""
    figure = figures.FIGURES[name]
    return math.prod(figure.size[0]) * len(figure.variants)


WORDS = {2: "two", 5: "five", 8: "eight", 15: "fifteen", 16: "sixteen"}
CAPS = [memory.MAX_GAUSSIANS[name] / 1e6 for name in ("8gb", "12gb", "24gb")]
SAID = {
    "README.md": [
        f"{len(world.OBJECTS)} objects in {len(world.COLOURS)} colours",
        f"stop densification at {CAPS[0]:g}, {CAPS[1]:g} and {CAPS[2]:g} million Gaussians",
        f"for {training.PRESETS['cpu'].minutes:.0f} minutes by default",
        f"{runs_of('fig6')} runs on a CPU",
        f'tuned on another prompt, "{prompts.TUNED_ON}"',
    ],
    "docs/method.md": [f"{parameters_of_the_operator() / 1e6:.2f}M parameters on four channels"],
    "docs/methods.md": [
        f"M, {parameters_of_the_operator() / 1e6:.2f}M parameters",
        f"with 4 views {forwards_of_the_corrective():,} forwards".replace(",", " "),
    ],
    "docs/reproduction.md": [f"There are {len(claims.CLAIMS)} claims"],
    "docs/outputs.md": [
        f"an opacity above {gaussians.FAINTEST:g} is visible",
        f"until the longer side has {outputs.SEEN} px",
    ],
    "docs/sweeps.md": [
        f"silent for {shift.STALE:.0f} seconds",
        f"lists the first {sweep_dry_run.SHOWN} runs",
        f"Every {optimization.REPLICAS_INTERVAL} iterations the processes compare",
        f"a sign of life every {WORDS[bench.BEAT]} seconds",
        f"every {WORDS[shift.POLL]} seconds, {WORDS[shift.LOOKS]} of them, or one in "
        f"{WORDS[shift.STALE / shift.OFTEN / shift.POLL]} if that is more",
    ],
    "docs/viewing.md": [
        f"{splats.MOST_BYTES / 1e6:.0f} MB of Gaussians",
        f"({splats.MOST_BYTES // (2 * splats.TEXEL):,} without harmonics)",
        f"Videos over {pages.MOST_VIDEO_BYTES / 1e6:.0f} MB",
        f"({stage.MOST_LIVE_SPLATS:,} while a run goes on)",
        f"a pause ends at most {WORDS[exchange.PAUSE_LASTS]} seconds after its viewer does",
    ],
    "docs/export.md": [f"{meshes.UNSEEN} other cameras compare the mesh with the Gaussians"],
    "docs/evaluation.md": [
        f"{pictures.RING}, evenly around the object, {pictures.ELEVATION_DEG:.0f} degrees above the horizon",
        f"in {references.STEPS} steps of second-order DPM-Solver++ at a guidance scale of {references.GUIDANCE_SCALE}",
        f"mean over {distances.DIRECTIONS} random directions",
        f"σ = {distances.CMMD_SIGMA:.0f}",
        f"With fewer than {WORDS[statistics.BOOTSTRAP_FROM]} prompts, its {100 * statistics.CONFIDENCE:.0f} % interval",
        f"in {100 * statistics.POWER:.0f} of 100 repetitions",
    ],
}
"""What pages say of the program's own limits and sizes, made of the limits and sizes."""


@pytest.mark.parametrize("name", SAID)
def test_limits_and_sizes_are_those_of_the_program(name):
    text = page(ROOT / name)
    assert [sentence for sentence in SAID[name] if sentence not in text] == []


def test_figure_9_is_that_of_its_runs():
    found = json.loads((prompts.RESULTS / "fig9.json").read_text("utf-8"))
    lines = (DOCS / "methods.md").read_text("utf-8").splitlines()
    assert set(rows("\n".join(report.tables(found)))) <= set(lines)
    text, variants = page(DOCS / "methods.md"), found["variants"]
    seconds = {name: variants[name]["measures"]["seconds"]["mean"] for name in ("vsd", "vdm")}
    assert f"VSD took {seconds['vsd'] / seconds['vdm']:.1f} times as long, two runs at a time" in text
    assert found["size"]["jobs"] == 2
    assert all(each["measures"]["R-precision"]["mean"] == 1 for each in variants.values())
