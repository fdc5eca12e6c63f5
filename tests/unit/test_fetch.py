"""Downloads of the official files are complete, verified and resumable. The server is a real one."""

import hashlib
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from foley.errors import DownloadError, FoleyError, OutputError, SettingError
from foley_export import published
from foley_export.cli import app, main
from foley_export.download import download
from foley_export.fetch import cache_folder, fetch, locked
from foley_export.published import PUBLISHED, PublishedFile, import_command

CONTENT = np.random.default_rng(0).bytes(1_500_000)
OTHER = np.random.default_rng(1).bytes(1_500_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "weights.pth"
CUT_AT = 5 * 2**16


class Handler(BaseHTTPRequestHandler):
    """A file server with range requests; `server.site.misbehave` makes it misbehave."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        site = self.server.site
        site.requests.append(dict(self.headers))
        for misbehave in site.misbehave.pop(0) if site.misbehave else ():
            if misbehave(self):
                return
        self.send_file()

    def send_file(self, *, ranges: bool = True, length: bool = True, cut: int | None = None, **headers: str) -> None:
        content = self.server.site.files.get(self.path.lstrip("/"))
        if content is None:
            return self.send_text(404, "text/plain", b"no such file")
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        start = 0
        if ranges and "Range" in self.headers and self.headers.get("If-Range", etag) == etag:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if length:
            self.send_header("Content-Length", str(len(content) - start))
        else:
            self.close_connection = True
        for name, value in {"ETag": etag, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content[start : None if cut is None else start + cut])
        if cut is not None:
            self.close_connection = True

    def send_text(self, status: int, kind: str, text: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Type": kind, "Content_Length": str(len(text)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        pass


@dataclass
class Site:
    """Files of the server, received requests, and misbehaviour: a list of faults for each of the first requests."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    misbehave: list[list[Callable[[Handler], bool]]] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)

    def url(self, name: str = NAME) -> str:
        return f"{self.address}/{name}"


class Server(ThreadingHTTPServer):
    site: Site
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that disconnect, which the tests do on purpose."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def site(server: Server) -> Site:
    server.site = Site(f"http://127.0.0.1:{server.server_port}", {NAME: CONTENT})
    return server.site


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def fault(method: Callable[[Handler], object], go_on: bool = False) -> list[Callable[[Handler], bool]]:
    """Return a list with one fault, which ends the response unless `go_on`."""
    return [lambda handler: (method(handler), not go_on)[1]]


CUT = fault(lambda handler: handler.send_file(cut=CUT_AT))
UNAVAILABLE = fault(lambda handler: handler.send_text(503, "text/plain", b"later"))


def get(site: Site, folder: Path, sha256: str = SHA256, **options: object) -> Path:
    destination = folder / NAME
    arguments = {"max_bytes": 10_000_000, "sha256": {sha256: "its publisher"}, "backoff_s": 0.001, **options}
    assert download(site.url(), destination, **arguments) == SHA256
    assert destination.read_bytes() == CONTENT
    assert [path.name for path in folder.iterdir()] == [NAME]
    return destination


def assert_rejected(
    site: Site, folder: Path, match: str, error: type[FoleyError] = DownloadError, **options: object
) -> None:
    with pytest.raises(error, match=match) as raised:
        get(site, folder, **options)
    assert raised.value.exit_code == 2
    assert not (folder / NAME).exists()
    text = str(raised.value)
    assert "\n" not in text
    assert not text.endswith(".")


def test_download_reports_progress(site, tmp_path):
    shown: list[tuple[int, int | None]] = []
    get(site, tmp_path, progress=lambda done, total: shown.append((done, total)))
    assert shown[0] == (0, len(CONTENT))
    assert shown[-1] == (len(CONTENT), len(CONTENT))
    assert shown == sorted(shown)


def test_interrupted_connection_is_resumed(site, tmp_path):
    site.misbehave = [CUT, CUT, CUT]
    get(site, tmp_path)
    assert [request.get("Range") for request in site.requests] == [
        None,
        f"bytes={CUT_AT}-",
        f"bytes={2 * CUT_AT}-",
        f"bytes={3 * CUT_AT}-",
    ]


def test_partial_file_is_resumed_by_next_run(site, tmp_path):
    def interrupt(done: int, total: int | None) -> None:
        if done > 500_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(site, tmp_path, progress=interrupt)
    assert not (tmp_path / NAME).exists()
    get(site, tmp_path)
    assert int(site.requests[1]["Range"].removeprefix("bytes=").removesuffix("-")) > 500_000


def test_retries_are_limited_and_partial_file_is_kept(site, tmp_path):
    site.misbehave = [fault(lambda handler: handler.send_file(cut=2**16))] * 100
    assert_rejected(site, tmp_path, r"failed 6 times .*run the command again to resume it")
    assert (tmp_path / f"{NAME}.partial").stat().st_size == 6 * 2**16
    site.misbehave = []
    get(site, tmp_path)


def test_changed_file_is_downloaded_from_the_start(site, tmp_path):
    def change(handler: Handler) -> None:
        handler.send_file(cut=CUT_AT)
        site.files[NAME] = CONTENT

    site.files[NAME] = OTHER
    site.misbehave = [fault(change)]
    get(site, tmp_path)
    assert len(site.requests) == 2


def test_changed_file_is_downloaded_from_the_start_without_if_range(site, tmp_path):
    def change(handler: Handler) -> None:
        handler.send_file(cut=CUT_AT)
        site.files[NAME] = CONTENT

    site.files[NAME] = OTHER
    ignore = [lambda handler: bool(handler.headers.replace_header("If-Range", '"' + md5(CONTENT) + '"'))]
    site.misbehave = [fault(change), ignore]
    get(site, tmp_path)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def test_server_without_ranges_restarts_download(site, tmp_path):
    site.misbehave = [CUT, fault(lambda handler: handler.send_file(ranges=False))]
    get(site, tmp_path)


def test_wrong_range_is_not_appended(site, tmp_path):
    def wrong_part(handler: Handler) -> None:
        handler.headers.replace_header("Range", "bytes=7-")
        handler.send_file()

    site.misbehave = [CUT, fault(wrong_part)]
    get(site, tmp_path)


def test_unavailable_server_is_retried(site, tmp_path):
    site.misbehave = [UNAVAILABLE, UNAVAILABLE]
    get(site, tmp_path)
    site.misbehave = [UNAVAILABLE] * 6
    (tmp_path / NAME).unlink()
    assert_rejected(site, tmp_path, "HTTP status 503 Service Unavailable")


def test_stalled_server_is_retried(site, tmp_path):
    stall = fault(lambda handler: (handler.send_file(cut=1000), handler.wfile.flush(), time.sleep(0.5)))
    site.misbehave = [stall]
    started = time.monotonic()
    get(site, tmp_path, timeout_s=(5.0, 0.1))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("method", "match"),
    [
        (lambda h: h.send_text(404, "text/plain", b""), "HTTP status 404 Not Found; .* copy the file to"),
        (lambda h: h.send_text(401, "text/plain", b""), "HTTP status 401 Unauthorized"),
        (
            lambda h: h.send_text(200, "text/html; charset=utf-8", b"<html>sign in</html>"),
            "web page instead of the file",
        ),
        (lambda h: h.send_file(length=False), "without a length"),
        (lambda h: h.send_text(302, "text/plain", b"", Location="file:///etc/passwd"), "cannot be downloaded"),
        (lambda h: h.send_text(200, "text/plain", b"hello", Content_Length="many"), "cannot be downloaded|failed 6"),
        (lambda h: h.send_file(X_Linked_Etag=f'"{"0" * 64}"'), "its server states 000"),
    ],
)
def test_rejects_responses_other_than_the_file(site, tmp_path, method, match):
    site.misbehave = [fault(method)] * 100
    assert_rejected(site, tmp_path, match)
    assert not list(tmp_path.glob("*.partial"))


def test_redirects_are_followed_up_to_a_limit(site, tmp_path):
    moved = fault(lambda handler: handler.send_text(302, "text/plain", b"", Location=f"/{NAME}"))
    site.misbehave = [moved, moved]
    get(site, tmp_path)
    (tmp_path / NAME).unlink()
    site.misbehave = [moved] * 100
    assert_rejected(site, tmp_path, "cannot be downloaded")


def test_file_with_wrong_hash_is_removed_and_reported(site, tmp_path):
    site.files[NAME] = OTHER
    assert_rejected(
        site,
        tmp_path,
        f"not the published file: its sha256 is {hashlib.sha256(OTHER).hexdigest()}, but its publisher states",
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("chunked", [False, True])
def test_rejects_file_above_size_limit(site, tmp_path, chunked):
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for _ in range(200):
            handler.wfile.write(b"186a0\r\n" + bytes(100_000) + b"\r\n")

    site.misbehave = [fault(endless)] if chunked else []
    assert_rejected(site, tmp_path, r"larger than 1 MB", max_bytes=1_000_000)
    assert not list(tmp_path.iterdir())


def test_truncated_chunked_response_is_detected(site, tmp_path):
    def cut(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"186a0\r\n" + CONTENT[:100_000] + b"\r\n")
        handler.close_connection = True

    site.misbehave = [fault(cut)]
    get(site, tmp_path)


@given(start=st.binary(max_size=50) | st.integers(0, len(CONTENT) + 2).map(lambda n: (CONTENT + b"xx")[:n]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_partial_file_ends_in_the_correct_file(site, tmp_path, start):
    (tmp_path / NAME).unlink(missing_ok=True)
    (tmp_path / f"{NAME}.partial").write_bytes(start)
    (tmp_path / f"{NAME}.partial.source").write_text(f'{site.url()}\n"{md5(CONTENT)}"\n')
    get(site, tmp_path)


@pytest.mark.parametrize("source", [None, b"", b"\xff\xfe", b'http://elsewhere/\n"1"\n'])
def test_partial_file_of_unknown_origin_is_not_resumed(site, tmp_path, source):
    (tmp_path / f"{NAME}.partial").write_bytes(OTHER[:1000])
    if source is not None:
        (tmp_path / f"{NAME}.partial.source").write_bytes(source)
    get(site, tmp_path)
    assert "Range" not in site.requests[0]


def test_unreachable_host_is_reported_with_manual_location(tmp_path):
    with pytest.raises(DownloadError, match=r"^127\.0\.0\.1 cannot be reached \(Connection refused\); .* copy it to"):
        download("http://user:secret@127.0.0.1:9/weights.pth", tmp_path / NAME, 1000, {})
    with pytest.raises(DownloadError, match=r"nowhere\.invalid cannot be reached") as raised:
        download("https://user:secret@nowhere.invalid/weights.pth", tmp_path / NAME, 1000, {})
    assert "secret" not in str(raised.value)


def test_environment_proxy_is_used(site, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("HTTP_PROXY", site.address)
    site.files["http://weights.invalid/a.pth"] = CONTENT
    assert download("http://weights.invalid/a.pth", tmp_path / NAME, 10_000_000, {}) == SHA256


def test_full_disk_keeps_partial_file(site, tmp_path):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    program = (
        "import sys; from pathlib import Path; from foley_export.download import download; from foley import command\n"
        "command.run(lambda: download(sys.argv[1], Path(sys.argv[2]), 10_000_000, {}))"
    )
    arguments = [sys.executable, "-c", program, site.url(), str(tmp_path / NAME)]
    done = subprocess.run(arguments, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cannot be written (File too large); free disk space and run the command again" in done.stderr
    assert (tmp_path / f"{NAME}.partial").stat().st_size == 400_000
    get(site, tmp_path)
    assert site.requests[-1]["Range"] == "bytes=400000-"


def test_unwritable_folder_is_reported(site, tmp_path):
    assert_rejected(site, tmp_path / "missing", "cannot be written", OutputError)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"), locked(tmp_path / "file" / "cache"):
        pass


# the cache

UNKNOWN = PublishedFile("video2rms", NAME, (), "", 10_000_000)
KNOWN = PublishedFile("raft", f"folder/{NAME}", (), SHA256[:8], 10_000_000)


def cached(site: Site, folder: Path, file: PublishedFile = UNKNOWN) -> Path:
    site.files[f"folder/{NAME}"] = site.files[NAME]
    return fetch(file, folder, site.address, lambda done, total: None, backoff_s=0.001)


@pytest.mark.parametrize("file", [UNKNOWN, KNOWN])
def test_cached_file_is_verified_and_not_downloaded_again(site, tmp_path, file):
    path = cached(site, tmp_path, file)
    assert path == tmp_path / file.path
    assert path.read_bytes() == CONTENT
    assert cached(site, tmp_path, file) == path
    assert len(site.requests) == 1
    subprocess.run(["sha256sum", "--check", "--quiet", f"{NAME}.sha256"], cwd=path.parent, check=True)

    path.write_bytes(OTHER)
    with pytest.raises(DownloadError, match=r"is not the published file: .*; remove it to download it again"):
        cached(site, tmp_path, file)
    assert path.read_bytes() == OTHER  # possibly the user's only copy
    path.unlink()
    assert cached(site, tmp_path, file).read_bytes() == CONTENT


def test_manually_placed_file_is_used(site, tmp_path):
    (tmp_path / NAME).write_bytes(CONTENT)
    cached(site, tmp_path)
    assert site.requests == []
    assert (tmp_path / f"{NAME}.sha256").read_text() == f"{SHA256}  {NAME}\n"


def test_file_without_published_hash_must_not_change(site, tmp_path):
    cached(site, tmp_path).unlink()
    site.files[NAME] = OTHER
    with pytest.raises(DownloadError, match=rf"{NAME}\.sha256 states {SHA256}"):
        cached(site, tmp_path)


def test_next_url_is_tried_after_404(site, tmp_path):
    file = PublishedFile("raft", NAME, (site.url("gone.pth"), site.url()), SHA256, 10_000_000)
    assert fetch(file, tmp_path, None, lambda done, total: None).read_bytes() == CONTENT
    file = PublishedFile("raft", "b.pth", (site.url("gone.pth"), site.url("lost.pth")), SHA256, 10_000_000)
    with pytest.raises(DownloadError, match=r"gone\.pth returns HTTP status 404"):
        fetch(file, tmp_path, None, lambda done, total: None)


@pytest.mark.parametrize("mirror", ["", "ftp://127.0.0.1", "/srv/files", "file:///srv"])
def test_mirror_must_be_http(tmp_path, mirror):
    with pytest.raises(SettingError, match="is not an HTTP"):
        fetch(UNKNOWN, tmp_path, mirror, lambda done, total: None)


def test_cache_is_locked_against_concurrent_fetches(tmp_path):
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(DownloadError, match="another `foley-export fetch` is using"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


def test_cache_folder_follows_environment(monkeypatch):
    for name in ("FOLEY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/foley")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # ignored according to the XDG specification
    assert cache_folder() == Path("/home/someone/.cache/foley")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache_folder() == Path("/var/cache/foley")
    monkeypatch.setenv("FOLEY_CACHE", "~/weights")
    assert cache_folder() == Path("/home/someone/weights")


# the table and the command


def test_table_of_published_files_is_valid():
    assert len({file.path for file in PUBLISHED}) == len(PUBLISHED)
    for file in PUBLISHED:
        assert file.urls
        assert all(url.endswith(Path(file.path).name) for url in file.urls)
        assert all(url.startswith("https://") or len(file.sha256) >= 16 for url in file.urls)
        assert set(file.sha256) <= set("0123456789abcdef")
        assert len(file.sha256) in (0, 64) or file.path.endswith(f"-{file.sha256}.pth")


def test_command_downloads_from_mirror_and_prints_paths(site, tmp_path, monkeypatch):
    monkeypatch.setenv("FOLEY_CACHE", str(tmp_path))
    site.files |= {file.path: b"opts" for file in PUBLISHED}
    done = CliRunner().invoke(app, ["fetch", "--mirror", site.address, "--only", "opts", "--only", "video2rms"])
    assert done.exit_code == 0, done.output
    assert "CC-BY-NC-SA 4.0" in done.stderr
    paths = [tmp_path / "checkpoint_000500_Video2RMS.pt", tmp_path / "opts.yml"]
    assert done.stdout.split() == [str(path) for path in paths]
    assert all(path.read_bytes() == b"opts" for path in paths)
    assert "foley-export import" not in done.stderr


def test_command_reports_error_with_exit_code_2(site, tmp_path, monkeypatch, capsys):
    site.files |= {file.path: b"raft" for file in PUBLISHED}
    arguments = ["--mirror", site.address, "--only", "raft", "--cache", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["foley-export", "fetch", *arguments])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {site.address}/raft_large_C_T_SKHT_V2-ff5fadd5.pth is not the published file")
    assert "but its publisher states ff5fadd5" in last


def test_command_lists_known_files():
    done = CliRunner().invoke(app, ["fetch", "--only", "raftt"])
    assert isinstance(done.exception, SettingError)
    assert str(done.exception) == (
        "unknown file 'raftt'; choose from rms2sound, video2rms, opts, raft, tokenizer, bn-inception"
    )


def test_import_command_is_printed_when_files_are_complete(tmp_path):
    folder = tmp_path / "the cache"
    (folder / published.TOKENIZER_FOLDER).mkdir(parents=True)
    for file in PUBLISHED:
        assert import_command(folder) is None
        (folder / file.path).touch()
    command = import_command(folder)
    assert command is not None
    for option in published.OPTIONS:
        assert f"--{option} '{folder}/" in command
    assert f"--tokenizer '{folder}/roberta-base' " in command
