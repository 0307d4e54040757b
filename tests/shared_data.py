"""Where trained models and labelled data lie, beside the project; without them tests skip."""

from __future__ import annotations

from pathlib import Path

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
