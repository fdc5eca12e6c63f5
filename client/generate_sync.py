"""Generates the synchronous SDK, `foley_client/_sync`, from `foley_client/_async`: `make sync`."""

import subprocess
import sys
from pathlib import Path

import unasync

SOURCE = Path(__file__).with_name("foley_client") / "_async"
NAMES = {
    "_async": "_sync",
    "aclosing": "closing",
    "AsyncApiBackend": "ApiBackend",
    "AsyncAttempt": "Attempt",
    "AsyncClient": "Client",
    "AsyncEvents": "Events",
    "AsyncFoleyClient": "FoleyClient",
    "AsyncGenerationJob": "GenerationJob",
    "AsyncStatuses": "Statuses",
    "AsyncTransport": "Transport",
}


def main(target: Path) -> None:
    """Write the generated modules to `target`."""
    files = [str(path) for path in SOURCE.glob("[a-z]*.py")]
    rule = unasync.Rule(f"{SOURCE}/", f"{target}/", additional_replacements=NAMES)
    unasync.unasync_files(files, [rule])
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["check", "--fix", "--quiet", "--select=I,F401"], ["format", "--quiet"]):
        subprocess.run([*ruff, *command, str(target)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
