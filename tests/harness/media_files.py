"""The collection of media files beside the checkout. Without it, its tests are skipped; in CI, they run and fail."""

import os
from pathlib import Path

import pytest

MEDIA = Path(__file__).parents[3] / "shared" / "media"
REAL_WORLD = MEDIA / "real_world"
needs_media = pytest.mark.skipif(
    not MEDIA.is_dir() and not os.environ.get("CI"), reason=f"the collection of media files is not at {MEDIA}"
)
