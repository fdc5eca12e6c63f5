"""Renders rows on a Triton server: a running one, or one that is started here and restarted when it is lost."""

import threading
from contextlib import ExitStack
from pathlib import Path

from foley.container import DEFAULT_LIMITS, Limits
from foley.errors import ServerUnavailable
from foley_client.embedded import embedded_triton
from foley_client.render.storage import Output
from foley_client.render.task import Done, Failed, Task, try_render
from foley_pipeline.cache import Cache
from foley_pipeline.cancellation import CancelToken
from foley_pipeline.media_loader import in_process
from foley_pipeline.triton import TritonClient
from foley_pipeline.triton_backend import TritonBackend


class Server:
    """A Triton server that renders rows. Thread-safe; connects or starts the server on first use.

    Args:
        url: `HOST:PORT`; None starts a server.
        bundle: Bundle of a started server; None for the default.
        cache: Folder of cached embeddings and envelopes; None for no cache.
        output: Destination of the results.
        scratch: Local folder for copies of inputs.
        limits: Limits on videos and recordings.
    """

    def __init__(
        self,
        url: str | None,
        bundle: Path | None,
        cache: Path | None,
        output: Output,
        scratch: Path,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._url, self._bundle, self._output, self._scratch, self._limits = url, bundle, output, scratch, limits
        self._cache = Cache(cache) if cache else None
        self._lock = threading.Lock()
        self._running = ExitStack()
        self._backend: TritonBackend | None = None
        self._versions: dict[str, str] = {}
        self._cancels: set[CancelToken] = set()
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
        cancel = CancelToken()
        self._cancels.add(cancel)
        backend = None
        try:
            if self._stopped:
                cancel.cancel()
            backend = self._connected()
            outcome = try_render(task, backend, self._output, self._scratch, cancel, self._limits)
        except Exception as error:
            outcome = Failed(type(error).__name__, str(error), worker_lost=True)
        finally:
            self._cancels.discard(cancel)
        if isinstance(outcome, Failed) and outcome.worker_lost:
            self._forget(backend)
        return outcome

    def stop(self) -> None:
        """Stop the running rows within one denoising step, and cancel all later ones."""
        self._stopped = True
        for cancel in list(self._cancels):
            cancel.cancel()

    def close(self) -> None:
        """Close the connection, and stop a server started here."""
        with self._lock:
            self._backend = None
            self._running.close()

    def _connected(self) -> TritonBackend:
        with self._lock:
            if self._backend is None:
                triton = self._running.enter_context(
                    TritonClient(self._url) if self._url else embedded_triton(self._bundle)
                )
                self._versions = self._versions or dict(triton.versions)
                if triton.versions != self._versions:
                    self._running.close()
                    raise ServerUnavailable(f"{triton.url} serves another bundle than before; run the command again")
                self._backend = TritonBackend(triton, cache=self._cache, loader=in_process(self._limits))
            return self._backend

    def _forget(self, backend: TritonBackend | None) -> None:
        """Close a lost connection, unless it has been replaced already; the next row reconnects."""
        with self._lock:
            if backend is not None and backend is self._backend:
                self._backend = None
                self._running.close()
