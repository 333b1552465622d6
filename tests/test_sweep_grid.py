"""The list of a sweep: names of runs, its grid, and what is refused."""

import logging
import signal
import sys
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from arguments import load
from dreammapping.__main__ import main
from dreammapping.sweep.dry_run import dry_run
from dreammapping.sweep.grid import Grid, Job, grid, wish
from dreammapping.sweep.processes import Team
from dreammapping.sweep.slug import run_name, slug
from utils.errors import UserError

QUICK = "configs/quickstart.yaml"


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "animals.txt"
    path.write_text("# two animals\na red duck\n\n  a blue cat  \n", encoding="utf-8")
    return path


# names


@given(st.lists(st.text(max_size=80), unique=True, min_size=2, max_size=2))
def test_two_texts_never_share_a_slug(texts):
    first, second = map(slug, texts)
    assert first != second
    assert all(
        set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-") and name[0] != "."
        for name in (first, second)
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a red car", "a_red_car"),
        ("A red car", "a_red_car-"),
        ("a_red_car", "a_red_car-"),
        ("a red  car", "a_red_car-"),
    ],
)
def test_a_slug_is_the_text_where_it_can_be_read_back(text, name):
    assert slug(text).startswith(name) and (slug(text) == name or name[-1] == "-")


def test_long_values_that_differ_in_the_middle_are_two_runs(tmp_path):
    paths = [f"{tmp_path}/{'a' * 90}{middle}{'b' * 90}.ply" for middle in "xy"]
    text = yaml.safe_dump(
        {"opt": QUICK, "prompts": ["a cat"], "settings": {"init_shape": "file", "init_path": paths}}
    )
    (tmp_path / "two.yaml").write_text(text)
    first, second = (job.name for job in grid(wish(tmp_path / "two.yaml")).jobs)
    assert first != second and max(len(first), len(second)) <= 255


def test_names_tell_what_is_varied_and_fit_a_file_system():
    assert run_name("a red car", {"guidance_scale": "7.5"}, 3) == "a_red_car-guidance_scale_7.5-s3"
    long = [run_name("a" * 500, {f"key{index}": "x" * 40 for index in range(20)}, seed) for seed in (1, 2)]
    assert max(map(len, long)) <= 255 and len(set(long)) == 2


# lists


def test_a_grid_is_every_prompt_with_every_setting_and_seed(prompts):
    words = ["guidance_scale=[5,7.5]", "guidance=[vdm,sds]", "t_range=[0.1,0.4]", "iterations=9"]
    made = grid(wish(None, prompts, QUICK, words, 2))
    assert [job.name for job in made.jobs[:3]] == [
        "a_red_duck-guidance_scale_5-guidance_vdm-s0",
        "a_red_duck-guidance_scale_5-guidance_vdm-s1",
        "a_red_duck-guidance_scale_5-guidance_sds-s0",
    ]
    assert len(made.jobs) == 2 * 2 * 2 * 2 and len(made.settings) == 4
    assert {job.prompt for job in made.jobs} == {"a red duck", "a blue cat"}
    chosen = yaml.safe_load(made.settings[made.jobs[2].settings])
    assert chosen["OptimizationParams"]["iterations"] == 9
    assert (chosen["GuidanceParams"]["guidance"], chosen["GuidanceParams"]["t_range"]) == ("sds", [0.1, 0.4])


def test_pairs_of_numbers_are_varied_as_lists_of_pairs(prompts):
    made = grid(wish(None, prompts, QUICK, ["t_range=[[0.1,0.4],[0.2,0.5]]"], 1))
    assert len(made.jobs) == 4


@pytest.mark.parametrize(("words", "noise"), [([], [0, 1]), (["noise_seed=5"], [5, 5])])
def test_a_run_with_a_seed_has_the_settings_that_it_has_alone(tmp_path, prompts, words, noise):
    made = grid(wish(None, prompts, QUICK, words, 2))
    path = tmp_path / "settings.yaml"
    path.write_text(made.settings[made.jobs[0].settings], encoding="utf-8")
    same = {"GuidanceParams.text": "a red duck", "ModelParams.workspace": "run"}
    for seed in (0, 1):
        config, _ = load(["--opt", str(path)], {**same, "seed": seed})
        assert config == load(["--opt", QUICK, *words, f"seed={seed}"], same)[0]
        assert config.GuidanceParams.noise_seed == noise[seed]


@pytest.mark.parametrize(
    ("words", "starts"), [([], [""]), (["init_prompt=[a dog.,a cow.]"], ["a dog.", "a cow."])]
)
def test_every_prompt_starts_from_its_own_shape(prompts, words, starts):
    made = grid(wish(None, prompts, "configs/cat.yaml", words, 1))
    found = [yaml.safe_load(text)["GenerateCamParams"] for text in made.settings.values()]
    assert [each["init_prompt"] for each in found] == starts
    assert all(each["init_shape"] == "shape" for each in found)


def test_a_sweep_file_says_the_same_as_the_command_line(tmp_path, prompts):
    path = tmp_path / "animals.yaml"
    path.write_text(
        f"opt: {QUICK}\nprompts: animals.txt\nseeds: [0, 1]\n"
        "settings:\n  guidance_scale: [5, 7.5]\n  OptimizationParams:\n    iterations: 9\n"
    )
    words = ["guidance_scale=[5,7.5]", "iterations=9"]
    assert grid(wish(path)) == grid(wish(None, prompts, QUICK, words, 2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("propmts: [a]", "got 'propmts'; did you mean prompts?"),
        ("prompts: []", "prompts: expected at least one, got []"),
        ("prompts: [a cat]\nseeds: 0", "seeds: expected a number of seeds"),
        ("prompts: [a cat]\nseeds: [1, -1]", "seeds: expected a number of seeds"),
        ("prompts: [a cat, 7]", "expected a list of texts"),
        ("prompts: [a cat, a cat]", "expected every run once, got a_cat-s0 twice"),
        ("prompts: [a cat, ' ']", "expected a text, got an empty one"),
        (r'prompts: [a cat, "\ud800"]', r"prompts: expected text in UTF-8, got '\ud800'; correct it"),
        ("prompts: [a cat]\nsettings: {guidance_scale: []}", "guidance_scale: expected at least one"),
        ("prompts: [a cat]\nsettings: {guidance_scale: [1, 1]}", "expected every run once"),
        ("prompts: [a cat]\nsettings: {gidance: sds}", "did you mean GuidanceParams.guidance"),
        ("prompts: [a cat]\nsettings: {guidance_scale: [x]}", "guidance_scale: expected a number, got 'x'"),
        ("prompts: [a cat]\nsettings: {seed: 3}", "expected another setting, got what seeds gives"),
        ("prompts: nowhere.txt", "nowhere.txt"),
        ("opt: [a]\nprompts: [a cat]", "opt: expected one path as text, got ['a']"),
        ("prompts: [a cat]\noutput: [q]", "output: expected one path as text, got ['q']"),
        ("- a cat", "expected a sweep with opt, prompts"),
        ("prompts: [a", "expected YAML"),
    ],
)
def test_a_bad_sweep_file_is_one_line(tmp_path, capsys, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text if "opt" in text or text.startswith("-") else f"opt: {QUICK}\n{text}")
    assert main(["sweep", str(path), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected one list, SWEEP.yaml or --prompts FILE, got none"),
        (["a.yaml", "b.yaml"], "got a.yaml and b.yaml"),
        (["a.yaml", "--workers", "0"], "--workers: expected at least 1, got 0"),
        (["a.yaml", "--stale", "nan"], "--stale: expected seconds above 0, got nan"),
        (["a.yaml", "--cards", "nan"], "--cards, --cpus: expected more than 0, got nan and 1"),
        (["a.yaml", "--shard", "0/4"], "--shard: expected i/n with i from 1 to n, got '0/4'"),
        (["a.yaml", "--cards", "1.5"], "--cards: expected a whole number without --ray, got 1.5"),
        (
            ["a.yaml", "--ray", "--cards", "1.5"],
            "expected a whole number or a fraction below 1, got 1.5; try 1",
        ),
        (["status", "/nowhere"], "expected a sweep's folder with its sweep.json"),
    ],
)
def test_a_bad_command_is_one_line(capsys, words, message):
    assert main(["sweep", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "found", "message"),
    [
        (["--cards", "4"], "0,1", "expected room for 1 worker with 4 cards each, got 2 cards; ask for less"),
        (["--cards", "2", "--workers", "2"], "0,1,2", "room for 2 workers with 2 cards each, got 3 cards"),
    ],
)
def test_more_cards_than_there_are_is_one_line(tmp_path, prompts, monkeypatch, capsys, words, found, message):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", found)
    monkeypatch.setattr("dreammapping.sweep.processes.run", None)  # it would begin
    out = tmp_path / "out"
    assert main(["sweep", "--prompts", str(prompts), "--opt", QUICK, "--output", str(out), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not out.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder in which nobody may make one")
def test_a_folder_that_cannot_be_made_is_one_line(prompts, capsys):
    assert main(["sweep", "--prompts", str(prompts), "--opt", QUICK, "--output", "/proc/nothing/here"]) == 2
    error = capsys.readouterr().err
    assert "/proc/nothing/here: cannot be used (" in error and error.count("\n") == 1


def test_workers_may_share_a_card_and_several_do_without():
    assert [Team(4, 1).size(["0"]), Team(None, 2).size(list("01234")), Team(None, 2).size([])] == [4, 2, 1]


def test_sigterm_ends_the_command_with_its_number(tmp_path, prompts, monkeypatch, capsys):
    def engine(_options):
        return lambda _folder, _progress: signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("dreammapping.sweep.command._engine", engine)
    words = ["sweep", "--prompts", str(prompts), "--opt", QUICK, "--output", str(tmp_path / "out"), "--quiet"]
    assert main(words) == 143 and "repeat the command to continue" in capsys.readouterr().err


def test_what_is_far_too_much_is_counted_and_not_made(prompts, monkeypatch):
    wanted = wish(None, prompts, QUICK, ["guidance_scale=[1,2]", "lambda_guidance=[1,2]"], 3)
    monkeypatch.setattr("dreammapping.sweep.grid.MOST", 23)
    monkeypatch.setattr("dreammapping.sweep.grid.itertools.product", None)
    with pytest.raises(UserError, match="expected at most 23 runs, got 2 prompts x 4 settings x 3 seeds"):
        grid(wanted)


# what is said before anything is run


def test_a_remark_on_settings_is_made_once_for_all_runs(tmp_path, prompts, monkeypatch, capsys):
    opt = tmp_path / "settings.yaml"
    opt.write_text(
        "GuidanceParams: {text: a red duck, guidance: SD, model_key: toybox}\nModelParams: {eval: true}\n"
    )
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr("dreammapping.dry_run.try_out", lambda _: SimpleNamespace(seconds=1.0, gib=2.0))
    words = ["sweep", "--prompts", str(prompts), "--opt", str(opt), "guidance_scale=[5,7.5]", "--dry-run"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert said.count("no effect") == 1 and said.count("SD runs VDM with DCA") == 1


def test_a_dry_run_tells_settings_of_one_name_apart(tmp_path, monkeypatch):
    monkeypatch.setattr("dreammapping.dry_run.try_out", lambda _: SimpleNamespace(seconds=1.0, gib=2.0))
    varied = {"ASDParams.scale": 1, "CSDParams.scale": 2, "GuidanceParams.guidance": "sds"}
    text = "GuidanceParams: {model_key: toybox, guidance: sds}\n"
    told = dry_run(Grid([Job("a", "a red car", 0, "one", varied)], {"one": text}), tmp_path / "out")
    assert "\nASDParams.scale=1, CSDParams.scale=2, guidance=sds: toybox, " in told
