"""Every model of the contract is served, ready, and configured as `foley.stages` specifies."""

from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import grpc
import numpy as np
import pytest

from foley import clip
from foley.errors import InvalidInput, ServerUnavailable, SettingError
from foley_pipeline.triton import TritonClient
from foley_server.launcher.model_config import DATA_TYPES, dims
from harness.settled import settled


def test_every_model_is_ready_and_matches_its_contract(triton: TritonClient) -> None:
    for name, stage in triton.stages.items():
        assert triton._client.is_model_ready(name), name
        config = triton._client.get_model_config(name).config
        assert config.max_batch_size == stage.max_batch
        assert config.model_transaction_policy.decoupled == stage.decoupled
        for served, tensors in ((config.input, stage.inputs), (config.output, stage.outputs)):
            assert [(one.name, one.data_type, list(one.dims)) for one in served] == [
                (tensor.name, DATA_TYPES[tensor.dtype], dims(tensor)) for tensor in tensors
            ]
    served = {model.name for model in triton._client.get_model_repository_index().models}
    assert served == set(triton.stages)


def test_frames_to_features_is_independent_of_chunks(triton: TritonClient) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (6, clip.FRAME_HEIGHT, clip.FRAME_WIDTH, 3), np.uint8)
    whole = triton.infer("frames_to_features", frames=frames)
    first = triton.infer("frames_to_features", frames=frames[:4])
    second = triton.infer("frames_to_features", frames=frames[3:])
    for name in ("rgb", "flow"):
        assert whole[name].shape == (5, triton.manifest.rgb_features.width)
        np.testing.assert_allclose(np.concatenate([first[name], second[name]]), whole[name], atol=1e-4)


def test_text_embeddings_are_unit_vectors_unaffected_by_padding(triton: TritonClient) -> None:
    """Includes the empty text and non-ASCII characters."""
    texts = ["", "a stick hits metal", "Schlägt 木 🥁" * 20]
    together = triton.infer("text_to_embedding", text=[[text.encode()] for text in texts])["embedding"]
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    for text, embedding in zip(texts, together, strict=True):
        alone = triton.infer("text_to_embedding", text=[[text.encode()]])["embedding"][0]
        np.testing.assert_allclose(alone, embedding, atol=1e-5)


def test_invalid_inputs_are_rejected_and_server_stays_ready(triton: TritonClient) -> None:
    with pytest.raises(InvalidInput, match="latents"):
        triton.infer("vae_decoder", latents=np.zeros((1, 8, 256, 15)))
    with pytest.raises(InvalidInput, match="UTF-8"):
        triton.infer("text_to_embedding", text=np.array([[b"\xff\xfe"]], np.object_))
    assert triton._client.is_server_ready()


def test_invalid_request_does_not_fail_others_in_batch(triton: TritonClient) -> None:
    """Triton's statistics show that the requests shared batches."""
    ids = np.zeros((1, 8), np.int64)
    bad = np.full((1, 8), 10**9, np.int64)

    def embed(number: int) -> np.ndarray | InvalidInput:
        try:
            return triton.infer("clap_text", input_ids=ids if number % 8 else bad, attention_mask=np.ones((1, 8)))[
                "embedding"
            ]
        except InvalidInput as error:
            return error

    expected = embed(1)
    before = settled(lambda: triton.statistics("clap_text"))
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(embed, range(128)))
    after = settled(lambda: triton.statistics("clap_text"))
    assert int(after["execution_count"]) - int(before["execution_count"]) < 128
    for number, answer in enumerate(answers):
        if number % 8:
            np.testing.assert_allclose(answer, expected, atol=1e-5)
        else:
            assert isinstance(answer, InvalidInput)


@pytest.fixture
def _short_connect_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foley_pipeline.triton.CONNECT_TIMEOUT_S", 1.0)


@pytest.mark.usefixtures("_short_connect_timeout")
def test_unreachable_server_is_reported() -> None:
    with pytest.raises(ServerUnavailable, match="no server responds"):
        TritonClient("127.0.0.1:9")


@pytest.mark.parametrize(
    "url", ["", "localhost", "http://localhost:8001", "localhost:8001/", "localhost:port", "a b:1"]
)
def test_rejects_malformed_address(url: str) -> None:
    with pytest.raises(SettingError, match="HOST:PORT"):
        TritonClient(url)


@pytest.mark.usefixtures("_short_connect_timeout")
def test_server_other_than_triton_is_reported() -> None:
    """A gRPC server without Triton's services, and a web server."""
    other = grpc.server(ThreadPoolExecutor(1))
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    web = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    Thread(target=web.serve_forever, daemon=True).start()
    try:
        with pytest.raises(ServerUnavailable, match="not a Triton"):
            TritonClient(f"127.0.0.1:{port}")
        with pytest.raises(ServerUnavailable):
            TritonClient(f"127.0.0.1:{web.server_port}")
    finally:
        other.stop(None)
        web.shutdown()
