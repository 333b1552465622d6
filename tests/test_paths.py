"""Paths as users write them: the home folder, and names that no path can have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.paths import user_path


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME" if sys.platform != "win32" else "USERPROFILE", str(tmp_path))
    assert user_path("~/models", "model_key") == tmp_path / "models"
    assert user_path("a~b", "model_key").name == "a~b"


def test_a_variable_is_its_value_and_an_unknown_one_itself(monkeypatch, tmp_path):
    monkeypatch.setenv("MODELS", str(tmp_path))
    assert user_path("$MODELS/a", "model_key") == user_path("${MODELS}/a", "model_key") == tmp_path / "a"
    assert user_path("a$NOBODY_SET_THIS", "model_key").name == "a$NOBODY_SET_THIS"


@pytest.mark.parametrize("name", ["~no such user/a", "a\0b", "a" * 5000])
def test_a_name_that_no_path_has_is_said_in_one_line(name):
    with pytest.raises(UserError, match=r"model_key: expected a path, got .*correct it") as error:
        user_path(name, "model_key")
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="needs a user whom permissions bind"
)
def test_a_folder_that_may_not_be_looked_into_is_said(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(UserError, match="cannot be used"):
        user_path(str(tmp_path / "closed" / "a"), "model_key")


def test_a_file_in_the_place_of_a_folder_is_an_absent_path(tmp_path):
    (tmp_path / "file").touch()
    assert not user_path(str(tmp_path / "file" / "a"), "model_key").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="file names there are no bytes")
def test_a_path_has_the_same_name_whatever_the_locale(tmp_path):
    """Settings are UTF-8; a locale without the letters names the folder by the same bytes."""
    code = "from utils.paths import user_path; user_path('läufe/猫', 'workspace').mkdir(parents=True)"
    old = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", f"exec({code!a})"], cwd=tmp_path, env=old, check=True)
    assert (tmp_path / "läufe" / "猫").is_dir()


@pytest.mark.skipif(sys.platform == "win32", reason="file names there are no bytes")
def test_a_path_that_is_no_utf8_is_refused(tmp_path, monkeypatch):
    """What reads tensors and videos cannot open it: a checkpoint there could be written and never read."""
    with pytest.raises(UserError, match=r"model_key: expected a path in UTF-8, got b'.*l\\xe4ufe'; rename"):
        user_path("l\udce4ufe", "model_key")
