"""The bundle with the official sizes and seeded weights, for performance measurements."""

import logging

from foley import bundle as bundles
from foley.bundle import Bundle
from foley.stages import networks
from foley_bench.machine import CHECKOUT
from foley_export import make
from foley_export.presets import PAPER
from foley_pipeline.progress import StageTimer

FOLDER = CHECKOUT / "bundles" / "paper"


def paper_bundle(timer: StageTimer) -> Bundle:
    """Return `bundles/paper` of the checkout, with graphs; create what is missing (minutes, 2.5 GB).

    Raises:
        BundleError: If the existing files are damaged.
        OutputError: If it cannot be written.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # as in `foley-export onnx`
    count = len(networks(PAPER))
    if not (FOLDER / bundles.MANIFEST).exists():
        with timer.stage("creating bundles/paper", count) as stage:
            for _ in make.init(PAPER, 0, FOLDER):
                stage.advance()
    if bundles.read(FOLDER).missing_graphs():
        with timer.stage("exporting bundles/paper", count) as stage:
            for _ in make.make_graphs(FOLDER):
                stage.advance()
    return bundles.read(FOLDER)
