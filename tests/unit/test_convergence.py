"""`foley-bench convergence`: the effect of the last updates of RAFT."""

import pytest

from foley.bundle import read
from foley.errors import BundleError
from foley_bench.convergence import STARTS, measure
from foley_pipeline.progress import StageTimer


def test_changes_per_update_and_sufficient_updates(tiny_bundle, repository):
    bundle = read(tiny_bundle)
    found = measure(bundle, repository / "examples" / "steel.mp4", 3, StageTimer()).document
    updates = found["updates"]
    assert found["settings"]["pairs"] == 3
    assert all(len(updates[start]) == bundle.manifest.optical_flow.updates for start in STARTS)
    before, *_, last = updates["no motion"]
    assert last == {"visible_percent": 0, "mean_levels": 0, "p99_levels": 0}
    assert before["mean_levels"] > 0
    assert updates["pair before"][-1]["mean_levels"] > 0
    for start, enough in found["sufficient_updates"].items():
        visible = [row["visible_percent"] for row in updates[start]]
        assert enough is None or max(visible[enough - 1 :]) <= 1
        assert enough in (1, None) or visible[enough - 2] > 1


def test_rejects_bundle_without_raft(repository):
    with pytest.raises(BundleError, match="no RAFT"):
        measure(read(repository / "bundles" / "demo"), repository / "examples" / "steel.mp4", 3, StageTimer())
