"""Renders rows on a Triton server: a running one, or one that is started here and restarted when it is lost."""

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
    """A Triton server that renders rows. Thread-safe; connects or starts the server on first use.

    Args:
        url: `HOST:PORT`; None starts a server.
        bundle: Bundle of a started server; None for the default.
        cache: Folder of cached embeddings and envelopes; None for no cache.
        output: Destination of the results.
        scratch: Local folder for copies of inputs.
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
        """Return the identity of the bundle and the versions of the software on the server.

        Raises:
            ServerUnavailable: The server does not respond or cannot be started.
            SettingError: The address is not valid.
        """
        return dict(self._connected().triton.versions)

    def render(self, task: Task) -> Done | Failed:
        """Render a row; every error is returned as `Failed`."""
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
        """Stop the running rows within one denoising step, and cancel all later ones."""
        self._stopped = True
        for watch in list(self._watches):
            watch.cancel()

    def close(self) -> None:
        """Close the connection, and stop a server started here."""
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
        """Close a lost connection, unless it has been replaced already; the next row reconnects."""
        with self._lock:
            if foley is not None and foley is self._foley:
                self._foley = None
                self._running.close()
