"""Settings for tests, by their bare names."""

import dataclasses
from typing import Any

from arguments import Config
from arguments.names import name_of


def config_of(**settings: Any) -> Config:
    """A Config with these settings, each in the one group that has it; their values are not checked."""
    config = Config()
    for key, value in settings.items():
        group, _, bare = name_of(key, "test").rpartition(".")
        changed = dataclasses.replace(getattr(config, group) if group else config, **{bare: value})
        config = dataclasses.replace(config, **{group: changed}) if group else changed
    return config
