"""Downloads one file over HTTP(S): resumable, verified, and atomic.

Proxies are taken from the environment (HTTPS_PROXY, NO_PROXY, ...).
"""

import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import requests

from foley import __version__
from foley.bundle import file_sha256
from foley.errors import DownloadError, OutputError
from foley_export.partial import Partial

Progress = Callable[[int, int | None], None]
"""Called with (bytes downloaded, total bytes or None if the server does not state them)."""

MAX_ATTEMPTS = 6  # requests for one file, with a back-off of 1, 2, 4, ... s
TIMEOUT_S = (10.0, 60.0)  # connect, read
MAX_REDIRECTS = 5
_CHUNK = 2**16  # bytes; the most that a dropped connection can lose
_RETRY_STATUSES = {408, 425, 429, 500, 502, 503, 504}
# Hugging Face states the sha256 of a large file in the redirect to its storage
_ETAG_SHA256 = re.compile('"?([0-9a-f]{64})"?')


def download(
    url: str,
    destination: Path,
    max_bytes: int,
    sha256: Mapping[str, str],
    progress: Progress = lambda done, total: None,
    backoff_s: float = 1.0,
    timeout_s: tuple[float, float] = TIMEOUT_S,
) -> str:
    """Download `url` to `destination` and return its sha256.

    Args:
        url: HTTP(S) URL of the file.
        destination: Path of the complete file; a partial download is kept beside it.
        max_bytes: Upper bound of the file's size.
        sha256: Prefixes of the expected hash -> the source that states it.
        progress: Called with the bytes so far and the total.
        backoff_s: First back-off delay in seconds, doubled after every attempt.
        timeout_s: Connect and read timeouts in seconds.

    Raises:
        DownloadError: If the host cannot be reached or the response is not the expected file.
        OutputError: If the disk is full or the folder cannot be written.
    """
    partial = Partial(destination)
    responded = False
    with requests.Session() as session:
        session.max_redirects = MAX_REDIRECTS
        session.headers.update({"User-Agent": f"foley-export/{__version__}", "Accept-Encoding": "identity"})
        for attempts_left in reversed(range(MAX_ATTEMPTS)):
            resumed = partial.resumes(url)
            try:
                with session.get(url, headers=partial.request_headers(url), stream=True, timeout=timeout_s) as response:
                    responded = True
                    stated = _receive(response, url, partial, max_bytes, progress)
            except (requests.exceptions.SSLError, requests.TooManyRedirects, ValueError) as error:
                raise _download_error(url, destination, f"cannot be downloaded ({_reason(error)})") from error
            except requests.RequestException as error:
                if not responded:  # offline: fail at once instead of after half a minute of retries
                    raise DownloadError(
                        f"{urlsplit(url).hostname} cannot be reached ({_reason(error)}); check the network connection, "
                        f"or download {_without_credentials(url)} on another machine and copy it to {destination}"
                    ) from error
                if not attempts_left:
                    raise DownloadError(
                        f"the download of {_without_credentials(url)} failed {MAX_ATTEMPTS} times ({_reason(error)}); "
                        f"run the command again to resume it, or copy the file to {destination}"
                    ) from error
            else:
                digest = file_sha256(partial.path)  # of the whole file on disk, including parts from earlier runs
                mismatch = sha256_mismatch(digest, {**sha256, **stated})
                if mismatch is None:
                    partial.finish()
                    return digest
                partial.discard()
                if not (resumed and attempts_left):  # an earlier part may be damaged: retry from the start
                    raise _download_error(url, destination, f"is not the published file: {mismatch}")
            time.sleep(backoff_s * 2 ** (MAX_ATTEMPTS - 1 - attempts_left))
    raise AssertionError("the last try returns or raises")


def sha256_mismatch(digest: str, sha256: Mapping[str, str]) -> str | None:
    """Return why `digest` does not match, or None; `sha256` is as in `download`."""
    for prefix, source in sha256.items():
        if not digest.startswith(prefix):
            return f"its sha256 is {digest}, but {source} states {prefix}"
    return None


def _receive(
    response: requests.Response, url: str, partial: Partial, max_bytes: int, progress: Progress
) -> dict[str, str]:
    """Append the response's body to `partial`; return the sha256 that the server states, if any.

    Raises:
        requests.RequestException: If another attempt may succeed.
        DownloadError: If the response cannot be the file.
        OutputError: If the disk is full or cannot be written.
    """
    headers, status = response.headers, response.status_code
    hops = [*response.history, response]
    if any(hop.url.startswith("http:") for hop in hops) and url.startswith("https:"):
        raise _download_error(url, partial.destination, "redirects to an unencrypted URL")
    etags = (_ETAG_SHA256.fullmatch(hop.headers.get("X-Linked-Etag", "")) for hop in hops)
    stated = {etag[1]: "its server" for etag in etags if etag}

    if status in _RETRY_STATUSES:
        raise requests.HTTPError(f"HTTP status {status} {response.reason}")
    if status == 416 and headers.get("Content-Range") == f"bytes */{partial.size}":  # the file is already complete
        return stated
    if status == 416 or (status == 206 and not partial.continues(url, headers)):
        partial.discard()
        raise requests.HTTPError("the server does not support resuming at this position")
    if status not in (200, 206):
        raise _download_error(url, partial.destination, f"returns HTTP status {status} {response.reason}")
    if headers.get("Content-Type", "").startswith("text/html"):
        raise _download_error(url, partial.destination, "returns a web page instead of the file")
    if status == 200:
        partial.start(url, headers)

    done = partial.size
    total = done + int(headers["Content-Length"]) if "Content-Length" in headers else None
    if total is None and headers.get("Transfer-Encoding") != "chunked":
        raise _download_error(url, partial.destination, "is sent without a length, so truncation could not be detected")
    _check_size(total or 0, max_bytes, url, partial)
    free = shutil.disk_usage(partial.path.parent).free
    if total is not None and total - done > free:
        raise OutputError(
            f"{partial.destination} needs {(total - done) / 1e6:.0f} MB, but its disk has {free / 1e6:.0f} MB free; "
            "free disk space, or choose another folder with --cache"
        )
    progress(done, total)
    for chunk in response.iter_content(_CHUNK):
        done += len(chunk)
        _check_size(done, max_bytes, url, partial)
        partial.append(chunk)
        progress(done, total)
    return stated


def _check_size(size: int, max_bytes: int, url: str, partial: Partial) -> None:
    if size > max_bytes:
        partial.discard()
        raise _download_error(
            url, partial.destination, f"is larger than {max_bytes / 1e6:.0f} MB, which the published file is not"
        )


def _download_error(url: str, destination: Path, what: str) -> DownloadError:
    return DownloadError(f"{_without_credentials(url)} {what}; try again later, or copy the file to {destination}")


def _without_credentials(url: str) -> str:
    """Return `url` without user name and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _reason(error: BaseException) -> str:
    """Return a short description of the root cause of an error from requests."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return getattr(error, "strerror", None) or str(error).rstrip(".") or type(error).__name__
