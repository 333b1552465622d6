"""Where things lie in the program's own folder."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
"""The settings that every table and every measurement begins with."""
