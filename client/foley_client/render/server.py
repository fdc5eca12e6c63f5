"""A Triton server that rows are rendered on: one that runs, or one of our own, started anew when it is gone."""

import threading
from contextlib import ExitStack
from pathlib import Path

from foley.errors import ServerUnavailable
from foley_client.embedded import embedded_triton
from foley_client.render.place import Output
from foley_client.render.task import Done, Failed, Task, attempt
from foley_pipeline.cache import Cache
from foley_pipeline.foley import Foley
from foley_pipeline.triton import Triton
from foley_pipeline.watch import Watch


class Server:
    """Safe to use from several threads. Nothing is started or connected before it is needed.

    Args:
        url: `HOST:PORT`, or None for one of our own.
        bundle: what our own serves, None for the default one.
        cache: where embeddings and envelopes are kept, None for nowhere.
    """

    def __init__(self, url: str | None, bundle: Path | None, cache: Path | None, output: Output, scratch: Path) -> None:
        self._url, self._bundle, self._output, self._scratch = url, bundle, output, scratch
        self._cache = Cache(cache) if cache else None
        self._lock = threading.Lock()
        self._running = ExitStack()
        self._foley: Foley | None = None
        self._versions: dict[str, str] = {}
        self._watches: set[Watch] = set()
        self._stopped = False

    def versions(self) -> dict[str, str]:
        """What it serves. Raises ServerUnavailable, SettingError."""
        return dict(self._connected().triton.versions)

    def render(self, task: Task) -> Done | Failed:
        """Render a row."""
        watch = Watch()
        self._watches.add(watch)
        foley = None
        try:
            if self._stopped:
                watch.cancel()
            foley = self._connected()
            outcome = attempt(task, foley, self._output, self._scratch, watch)
        except Exception as error:
            outcome = Failed(type(error).__name__, str(error), lost=True)
        finally:
            self._watches.discard(watch)
        if isinstance(outcome, Failed) and outcome.lost:
            self._forget(foley)
        return outcome

    def stop(self) -> None:
        """Stop what is being rendered within one step, and render no more."""
        self._stopped = True
        for watch in list(self._watches):
            watch.cancel()

    def close(self) -> None:
        """End the connection, and the server where it is our own."""
        with self._lock:
            self._foley = None
            self._running.close()

    def _connected(self) -> Foley:
        with self._lock:
            if self._foley is None:
                triton = self._running.enter_context(Triton(self._url) if self._url else embedded_triton(self._bundle))
                self._versions = self._versions or dict(triton.versions)
                if triton.versions != self._versions:
                    self._running.close()
                    raise ServerUnavailable(f"{triton.url} serves another bundle than before; start anew")
                self._foley = Foley(triton, self._cache)
            return self._foley

    def _forget(self, foley: Foley | None) -> None:
        """The connection was lost; the next row makes another, unless one has been made already."""
        with self._lock:
            if foley is not None and foley is self._foley:
                self._foley = None
                self._running.close()
