"""Triton's control calls stay closed to other users of the machine, who can read its command line."""

import re
import socket

import psutil

from foley_pipeline.triton import TritonClient

DATA, HEADERS, RST_STREAM, GOAWAY = 0, 1, 3, 7
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content


def literal(name: str, value: str) -> bytes:
    """An HPACK header that is not in a table."""
    return b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in (name, value))


def call(port: int, method: str, *headers: tuple[str, str]) -> list[int]:
    """Call a method with an empty message over raw HTTP/2, which a gRPC library would not send; return the frames."""
    common = [(":method", "POST"), (":scheme", "http"), (":path", f"/inference.GRPCInferenceService/{method}")]
    common += [(":authority", "localhost"), ("content-type", "application/grpc"), ("te", "trailers")]
    block = b"".join(literal(*header) for header in (*common, *headers))
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
        connection.sendall(frame(HEADERS, END_HEADERS, 1, block) + frame(DATA, END_STREAM, 1, bytes(5)))
        reader, received = connection.makefile("rb"), []
        while head := reader.read(9):
            reader.read(int.from_bytes(head[:3], "big"))
            if int.from_bytes(head[5:], "big") == 1 or head[3] == GOAWAY:
                received.append(head[3])
                if head[3] in (RST_STREAM, GOAWAY) or head[4] & END_STREAM:
                    break
    return received


def test_the_word_on_the_command_line_opens_nothing(triton: TritonClient) -> None:
    port = int(triton.url.rsplit(":", 1)[1])
    commands = [one.info["cmdline"] for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"]]
    (command,) = (one for one in commands if f"--grpc-port={port}" in one)
    flag = next(word for word in command if word.startswith("--grpc-restricted-protocol="))
    key, word = re.fullmatch(r".*:(.+)=(.+)", flag).groups()
    assert call(port, "ServerReady")[:2] == [HEADERS, DATA]  # an open call returns a message
    for name in (key, key.lower()):
        header = (f"triton-grpc-protocol-{name}", word)
        for method in ("SystemSharedMemoryStatus", "TraceSetting", "LogSettings"):
            assert DATA not in call(port, method, header), (method, name)
    assert triton.ready()
