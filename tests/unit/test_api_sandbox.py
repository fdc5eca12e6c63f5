"""Untrusted media are decoded in a sandboxed process with identical results and bounded cost."""

import gc
import os
import resource
import sys
import threading
import time
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
import soundfile

from foley import mux
from foley.audio import read_audio
from foley.clip import SAMPLE_RATE_HZ
from foley.container import Limits
from foley.errors import MediaError, MediaTooLarge, Overloaded
from foley.media import read_frames
from foley_pipeline.media_loader import MediaLoader
from foley_server.sandbox.preview import write_preview
from foley_server.sandbox.sandbox import FRAME_BYTES, Sandbox

ROOT = Path(__file__).resolve().parents[2]
MEDIA = Path(os.environ.get("FOLEY_MEDIA", ROOT.parent / "shared" / "media"))
EXAMPLE = ROOT / "examples" / "steel.mp4"
MEDIA_FILES = [
    path
    for path in sorted(MEDIA.rglob("*"))
    if path.suffix in (".mp4", ".mkv", ".webm", ".gif", ".mov", ".m4a", ".avi", ".webp")
]
LIMITS = Limits(duration_s=60)
SANDBOX = Sandbox(LIMITS, memory_bytes=2 << 30, cpu_s=20, wall_s=30)


@pytest.fixture(autouse=True)
def _no_leaks():
    """No process, zombies included, and no descriptor is left."""
    gc.collect()  # close the descriptors of earlier tests now, not during this test
    process = psutil.Process()
    children, descriptors = process.children(), process.num_fds()
    yield
    assert process.children() == children
    assert process.num_fds() == descriptors


def decoders():
    """Return the running decoder processes."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if "foley_server.sandbox.decoder" in child.cmdline():
                found.append(child)
    return found


def write_video(path, seconds, size=(64, 48)):
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", 30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        random = np.random.default_rng(0)
        pictures = [random.integers(0, 256, (size[1], size[0], 3), np.uint8) for _ in range(8)]
        for i in range(round(seconds * 30)):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pictures[i % 8], format="rgb24")))
        file.mux(stream.encode())
    return path


def test_video_matches_decoding_in_process():
    decoded, expected = SANDBOX.loader.video(EXAMPLE), read_frames(EXAMPLE, LIMITS)
    assert decoded.info == expected.info
    assert len(decoded) == len(expected)
    for a, b in zip(decoded, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_recording_matches_decoding_in_process(tmp_path):
    soundfile.write(tmp_path / "voice.wav", np.random.default_rng(0).normal(0, 0.1, (200_000, 2)), 44_100)
    np.testing.assert_array_equal(
        SANDBOX.loader.audio(tmp_path / "voice.wav"), read_audio(tmp_path / "voice.wav", LIMITS)
    )


def result(read):
    """Return what a function returns, or the error that it raises; unexpected ones crash the decoder."""
    try:
        return read()
    except MediaError as error:
        return "crash" if "the decoder crashed" in str(error) else (type(error), str(error))
    except Exception:
        return "crash"


@pytest.mark.skipif(not MEDIA.is_dir(), reason=f"no media files at {MEDIA}; set FOLEY_MEDIA to their folder")
@pytest.mark.parametrize("path", MEDIA_FILES, ids=lambda path: path.name)
def test_results_match_those_in_process(tmp_path, path):
    """Under Landlock and seccomp, libraries lack files and calls that they may use in some formats only."""

    def pictures(loader):
        return [hash(image.tobytes()) for image in loader.video(path)]

    def sound(loader):
        return loader.audio(path).tolist()

    in_process = MediaLoader(lambda one: read_frames(one, LIMITS), lambda one: read_audio(one, LIMITS))
    for read in (pictures, sound):
        assert result(lambda: read(SANDBOX.loader)) == result(lambda: read(in_process))  # noqa: B023

    waveform = np.random.default_rng(0).uniform(-0.1, 0.1, 16_000).astype(np.float32)
    soundfile.write(tmp_path / "sound.wav", waveform, SAMPLE_RATE_HZ, subtype="FLOAT")
    outputs = [("mix", ".mp4"), ("keep", ".mkv")][MEDIA_FILES.index(path) % 2 :][:1]  # for each file one of them
    if path.name in ("vp9.webm", "short_5_frames.mp4"):  # copied, and encoded, which takes long
        outputs.append(("replace", ".webm"))
    for source_audio, extension in outputs:

        def mux_here(to, how=source_audio):
            mux.write_video(path, waveform, SAMPLE_RATE_HZ, to, how, limits=LIMITS)

        def mux_sandboxed(to, how=source_audio):
            SANDBOX.mux(path, tmp_path / "sound.wav", to, how)

        files = [tmp_path / f"{name}{extension}" for name in ("sandboxed", "expected")]
        expected = result(lambda: mux_here(files[1]))  # noqa: B023
        assert result(lambda: mux_sandboxed(files[0])) == expected  # noqa: B023
        if expected is None:
            assert contents(files[0]) == contents(files[1])
    files = [tmp_path / "preview.mp4", tmp_path / "expected-preview.mp4"]
    expected = result(lambda: write_preview(path, files[1], LIMITS))
    assert result(lambda: SANDBOX.preview(path, files[0])) == expected
    if expected is None:
        assert contents(files[0]) == contents(files[1])


def contents(path):
    """Return the properties of a written file; encoders with several threads do not repeat themselves exactly."""
    info = read_frames(path, LIMITS).info
    return info, len(read_audio(path, LIMITS)) if info.has_audio else 0


def test_playlists_read_no_other_file(tmp_path):
    secret = write_video(tmp_path / "secret.mp4", 1)
    for name, content in {
        "concat": f"ffconcat version 1.0\nfile {secret}\n",
        "hls": f"#EXTM3U\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
        "sdp": "v=0\nm=video 5004 RTP/AVP 96\nc=IN IP4 127.0.0.1\n",
        "url": f"file:{secret}",
    }.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(MediaError, match="not a video"):
            SANDBOX.loader.video(tmp_path / name)


@pytest.mark.parametrize(
    ("limit", "word"),
    [
        ({"bytes": 1_000}, "bytes"),
        ({"duration_s": 0.5}, "limit of 0.5 s"),
        ({"pixels": 64 * 48 - 1}, "pixels"),
        ({"frames": 29}, "frames"),
        ({"packets": 29}, "packets"),
    ],
)
def test_limits_apply_before_decoding(tmp_path, limit, word):
    video = write_video(tmp_path / "video.mp4", 1)
    with pytest.raises(MediaTooLarge, match=word):
        Sandbox(Limits(**limit), 2 << 30, 20, 30).loader.video(video)


def test_many_streams_and_packets_are_rejected_fast(tmp_path):
    """5,000 packets of one sample each, in more streams than the limit."""
    with av.open(str(tmp_path / "many.mkv"), "w") as file:
        streams = [file.add_stream("pcm_s16le", 8_000, layout="mono") for _ in range(20)]
        for i in range(5_000):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1), np.int16), "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 8_000, i, Fraction(1, 8_000)
            file.mux(streams[i % 20].encode(frame))
    for limits in (Limits(streams=16), Limits(packets=1_000)):
        began = time.monotonic()
        with pytest.raises(MediaError):
            Sandbox(limits, 2 << 30, 20, 30).read_audio(tmp_path / "many.mkv")
        assert time.monotonic() - began < 5


def test_cpu_time_is_bounded(tmp_path):
    heavy = write_video(tmp_path / "heavy.mp4", 20, (640, 480))
    sandbox = Sandbox(LIMITS, 2 << 30, cpu_s=1, wall_s=60)
    began = time.monotonic()
    with pytest.raises(MediaTooLarge, match="CPU time"):
        for _ in sandbox.loader.video(heavy):
            pass
    assert time.monotonic() - began < 15


def test_memory_is_bounded(tmp_path):
    video = write_video(tmp_path / "video.mp4", 1, (1920, 1080))
    with pytest.raises(MediaError):
        for _ in Sandbox(LIMITS, memory_bytes=220 << 20, cpu_s=20, wall_s=30).loader.video(video):
            pass


def test_hanging_decoder_times_out(tmp_path):
    sandbox = Sandbox(LIMITS, 2 << 30, cpu_s=20, wall_s=1.5)
    video = sandbox.loader.video(write_video(tmp_path / "video.mp4", 30))
    frames = iter(video)
    next(frames)
    (child,) = decoders()
    child.suspend()
    with pytest.raises(MediaTooLarge, match=r"1\.5 s"):
        for _ in frames:
            pass


def test_killed_decoder_raises_media_error(tmp_path):
    video = SANDBOX.loader.video(write_video(tmp_path / "video.mp4", 30))
    frames = iter(video)
    next(frames)
    (child,) = decoders()
    child.kill()
    with pytest.raises(MediaError):
        for _ in frames:
            pass


def test_closing_the_iterator_ends_the_decoder(tmp_path):
    frames = iter(SANDBOX.loader.video(write_video(tmp_path / "video.mp4", 30)))
    next(frames)
    assert decoders()
    frames.close()
    assert not decoders()


def test_files_are_decoded_concurrently(tmp_path):
    slow = iter(SANDBOX.loader.video(write_video(tmp_path / "slow.mp4", 30)))
    next(slow)
    assert sum(1 for _ in SANDBOX.loader.video(write_video(tmp_path / "quick.mp4", 1))) == 30
    slow.close()


PROBING = """#!{python}
import os, resource, sys
sys.argv = ["-c", *sys.argv[4:]]
from foley_server.sandbox import decoder
import json
order = json.loads(sys.argv[3])
decoder.set_limits(order["memory_bytes"], order["cpu_s"])
found = []
try:
    with open("/tmp/foley-decoder-was-here", "w") as file:
        file.write("x")
    found.append("a file was written")
except OSError:
    pass
if os.environ.keys() - {{"LC_CTYPE", "OPENBLAS_NUM_THREADS"}}:
    found.append(f"environment: {{sorted(os.environ)}}")
if resource.getrlimit(resource.RLIMIT_AS)[1] != order["memory_bytes"]:
    found.append("memory can be had back")
if "NoNewPrivs:\\t1" not in open("/proc/self/status").read():
    found.append("new rights can be had")
out = os.fdopen(1, "wb")
content = json.dumps(["MEDIA_ERROR", repr(found)]).encode()
out.write(decoder.PREFIX.pack(b"E", len(content)) + content)
"""


def test_decoder_has_no_privileges(tmp_path, monkeypatch):
    """Checked by a program that replaces the decoder and applies the same limits to itself."""
    program = tmp_path / "python"
    program.write_text(PROBING.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(MediaError) as raised:
        SANDBOX.loader.video(EXAMPLE)
    Path("/tmp/foley-decoder-was-here").unlink(missing_ok=True)
    assert str(raised.value) == "[]"


def replace_decoder(tmp_path, monkeypatch, program):
    """Replace the decoder with `program`."""
    file = tmp_path / "python"
    file.write_text(f"#!{sys.executable}\nimport sys, struct, time\nout = sys.stdout.buffer\n{program}")
    file.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(file))


@pytest.mark.parametrize(
    "program",
    [
        "",
        "out.write(b'garbage' * 1000)",
        "out.write(struct.pack('<cI', b'H', 2**32 - 1)); out.write(b'x' * 10**7)",
        "out.write(struct.pack('<cI', b'H', 2) + b'[]' + struct.pack('<cI', b'Z', 0))",
        "out.write(struct.pack('<cI', b'D', 10) + b'x' * 10)",
        "out.write(struct.pack('<cI', b'E', 4) + b'oops')",
        "out.write(struct.pack('<cI', b'E', 20) + b'[\"SETTING_ERROR\", 0]  ')",
        "out.write(struct.pack('<cI', b'H', 100) + b'x')",
        "out.write(struct.pack('<cI', b'Z', 5) + b'xxxxx')",
        "sys.exit(3)",
    ],
)
def test_invalid_decoder_output_raises_media_error(tmp_path, monkeypatch, program):
    replace_decoder(tmp_path, monkeypatch, program)
    with pytest.raises(MediaError):
        SANDBOX.loader.video(EXAMPLE)


def test_frames_beyond_the_announced_length_raise_media_error(tmp_path, monkeypatch):
    video = SANDBOX.loader.video(EXAMPLE)
    replace_decoder(
        tmp_path, monkeypatch, f"while True: out.write(struct.pack('<cI', b'D', {FRAME_BYTES}) + bytes({FRAME_BYTES}))"
    )
    before = psutil.Process().memory_info().rss
    frames = iter(video)
    for _ in range(len(video)):
        next(frames)
    with pytest.raises(MediaError):
        next(frames)
    assert psutil.Process().memory_info().rss - before < 100 << 20


def test_concurrent_reads_from_threads(tmp_path):
    path = write_video(tmp_path / "video.mp4", 1)
    failures = []

    def read():
        try:
            assert sum(1 for _ in SANDBOX.loader.video(path)) == 30
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_works_with_more_than_1024_open_files():
    """`select.select` accepts no descriptor above 1023; idle connections can hold as many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1_100)]
    try:
        assert len(SANDBOX.loader.video(EXAMPLE)) == len(read_frames(EXAMPLE, LIMITS))
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_decoders_are_limited(tmp_path):
    sandbox = Sandbox(LIMITS, 2 << 30, cpu_s=20, wall_s=2, decoders=2)
    path = write_video(tmp_path / "video.mp4", 30)
    video = sandbox.loader.video(path)
    held = [iter(video), iter(video)]
    for frames in held:
        next(frames)
    with pytest.raises(Overloaded, match="2 files") as raised:
        sandbox.loader.video(path)
    assert raised.value.retry_after_s
    assert len(decoders()) == 2
    held[0].close()
    assert sandbox.loader.video(path).info == video.info
    held[1].close()


def test_waiting_reads_follow_when_a_decoder_ends(tmp_path):
    path = write_video(tmp_path / "video.mp4", 1)
    sandbox, most, lock = Sandbox(LIMITS, 2 << 30, cpu_s=20, wall_s=60, decoders=2), [0], threading.Lock()

    def read():
        for _ in sandbox.loader.video(path):
            with lock:
                most[0] = max(most[0], len(decoders()))

    threads = [threading.Thread(target=read) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= most[0] <= 2


def test_ends_of_decoders_are_reported(tmp_path):
    ends = []
    sandbox = Sandbox(LIMITS, 2 << 30, cpu_s=20, wall_s=5, on_end=ends.append)
    long = write_video(tmp_path / "long.mp4", 30)
    (tmp_path / "text.mp4").write_text("text")
    video = sandbox.loader.video(long)
    with pytest.raises(MediaError):
        sandbox.loader.video(tmp_path / "text.mp4")
    for act in (psutil.Process.kill, psutil.Process.suspend):
        frames = iter(video)
        next(frames)
        act(decoders()[0])
        with pytest.raises(MediaError):
            for _ in frames:
                pass
    frames = iter(video)
    next(frames)
    frames.close()
    with pytest.raises(MediaTooLarge, match="CPU time"):
        for _ in Sandbox(LIMITS, 2 << 30, cpu_s=1, wall_s=60, on_end=ends.append).loader.video(
            write_video(tmp_path / "heavy.mp4", 20, (640, 480))
        ):
            pass
    assert ends == ["ok", "refused", "crashed", "timeout", "cancelled", "ok", "timeout"]


def test_processes_of_the_decoder_end_with_it(tmp_path, monkeypatch):
    """Where the sandbox does not prevent them."""
    note = tmp_path / "pid"
    replace_decoder(
        tmp_path,
        monkeypatch,
        "import subprocess\n"
        f"open({str(note)!r}, 'w').write(str(subprocess.Popen(['sleep', '1000'], stdout=subprocess.DEVNULL).pid))\n"
        "out.write(b'garbage' * 1000)",
    )
    with pytest.raises(MediaError):
        SANDBOX.loader.video(EXAMPLE)
    child = int(note.read_text())
    deadline = time.monotonic() + 30
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
