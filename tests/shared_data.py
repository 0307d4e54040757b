"""Where trained models and labelled data lie, beside the project; tests that need them skip without."""

from __future__ import annotations

from pathlib import Path

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
