"""Creates a bundle from a training run: float16 weights, tokenizer, the regression baseline and graphs."""

from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save_file

from foley.manifest import Manifest, Source
from foley_export import make
from foley_export.networks import NETWORKS
from foley_export.networks.network import Network
from foley_export.networks.video2rms import REGRESSION_WEIGHTS
from foley_training.run import Run


def write_bundle(run: Run, destination: Path) -> Iterator[str]:
    """Write the weights of `run`, finished or not, as a new bundle with graphs.

    Yields:
        The name of every stage as its work starts.

    Raises:
        SettingError: If training of a stage has not started.
        OutputError: If the folder exists or cannot be written.
    """
    trained = _networks(run)
    manifest = _manifest(run)
    yield from make.write(manifest, trained.__getitem__, run.tokenizer(), destination, half=True)
    regression = run.trained(run.video2rms_regression()).network
    (destination / REGRESSION_WEIGHTS).parent.mkdir()
    half = {key: t.half().contiguous() if t.is_floating_point() else t for key, t in regression.state_dict().items()}
    save_file(half, destination / REGRESSION_WEIGHTS)
    (destination / REGRESSION_WEIGHTS).chmod(0o644)
    yield from make.make_graphs(destination)


def _manifest(run: Run) -> Manifest:
    train, _ = run.latents()
    vae = run.manifest.vae_decoder.model_copy(update={"scale_factor": round(train.scale_factor, 6)})
    source = Source(name=f"foley-train, preset {run.config.preset}, seed {run.config.seed}")
    return run.manifest.model_copy(update={"vae_decoder": vae, "sources": (source,)})


def _networks(run: Run) -> dict[str, Network]:
    """Return every network of the bundle with its trained weights."""
    clap, control = run.trained(run.clap()), run.trained(run.control_net())
    rgb, flow = NETWORKS["rgb_features"](run.manifest), NETWORKS["flow_features"](run.manifest)
    for network, task in ((rgb, run.rgb_features()), (flow, run.flow_features())):
        network.get_submodule("network").load_state_dict(run.trained(task).networks["network"].state_dict())
    return {
        "rgb_features": rgb,
        "flow_features": flow,
        "video2rms": run.trained(run.video2rms()).network,
        "clap_text": clap.text,
        "clap_audio": clap.audio,
        "denoiser": control.denoiser,
        "vae_decoder": run.trained(run.vae()).decoder,
        "vocoder": run.trained(run.vocoder()).folded(),
    }
