"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real volumes; skips where only the project itself is present."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real volumes are not at {SHARED_DATA}")
    return SHARED_DATA
