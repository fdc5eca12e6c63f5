"""Networks in the layouts of diffusers and transformers: converted, they compute what those libraries compute."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch.nn import functional
from transformers import ClapConfig, ClapModel, SpeechT5HifiGan, SpeechT5HifiGanConfig

from foley import bundle as bundles
from foley.errors import CheckpointError
from foley_export import importer
from foley_export.import_plan import Files, plan
from foley_export.make import load_network
from foley_export.presets import TINY

TOLERANCE = 1e-5
# diffusers has one number of groups for all normalisations, so all widths are multiples of 32
SMALL = TINY.model_copy(
    update={
        "denoiser": TINY.denoiser.model_copy(
            update={"width": 32, "residual_blocks": 2, "attention_levels": (1, 2), "head_width": 16}
        ),
        "vae_decoder": TINY.vae_decoder.model_copy(update={"width": 32, "multipliers": (1, 2, 4)}),
    }
)
UNET, VAE, TEXT, AUDIO, VOCODER = SMALL.denoiser, SMALL.vae_decoder, SMALL.clap_text, SMALL.clap_audio, SMALL.vocoder
REPLACED = (
    *(f"model.diffusion_model.{part}" for part in ("time_embed", "film_emb", "input_", "middle_", "output_", "out.")),
    "first_stage_model.",
    "cond_stage_models.",
)


def unet() -> UNet2DConditionModel:
    widths = tuple(UNET.width * multiplier for multiplier in UNET.multipliers)
    attends = [level in UNET.attention_levels for level in range(len(widths))]
    return UNet2DConditionModel(
        in_channels=8,
        out_channels=8,
        layers_per_block=UNET.residual_blocks,
        block_out_channels=widths,
        down_block_types=tuple("CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)),
        cross_attention_dim=widths,
        attention_head_dim=tuple(width // UNET.head_width for width in widths),  # a misnomer: the number of heads
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=512,
        class_embeddings_concat=True,
    )


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=8,
        layers_per_block=VAE.residual_blocks,
        block_out_channels=[VAE.width * multiplier for multiplier in VAE.multipliers],
        down_block_types=["DownEncoderBlock2D"] * len(VAE.multipliers),
        up_block_types=["UpDecoderBlock2D"] * len(VAE.multipliers),
    )


def vocoder() -> SpeechT5HifiGan:
    return SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=64,
            upsample_initial_channel=VOCODER.width,
            upsample_rates=VOCODER.upsample_rates,
            upsample_kernel_sizes=VOCODER.upsample_kernels,
            resblock_kernel_sizes=VOCODER.resblock_kernels,
            resblock_dilation_sizes=[VOCODER.resblock_dilations] * len(VOCODER.resblock_kernels),
            normalize_before=False,
        )
    )


def clap() -> ClapModel:
    text = {
        "vocab_size": TEXT.vocabulary,
        "hidden_size": TEXT.width,
        "num_hidden_layers": TEXT.layers,
        "num_attention_heads": TEXT.heads,
        "intermediate_size": TEXT.feed_forward_width,
        "max_position_embeddings": TEXT.max_tokens + 2,
        "layer_norm_eps": 1e-5,
    }
    audio = {
        "patch_embeds_hidden_size": AUDIO.width,
        "hidden_size": AUDIO.width * 8,
        "depths": list(AUDIO.depths),
        "num_attention_heads": list(AUDIO.heads),
    }
    return ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=512))


@pytest.fixture(scope="module")
def models():
    """By option, the modules of the libraries with random weights: also where they start from zeros or ones."""
    torch.manual_seed(0)
    found = {"--unet": unet(), "--vae": vae(), "--vocoder": vocoder(), "--clap": clap()}
    with torch.no_grad():
        for model in found.values():
            model.eval()
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point() and tensor.dim() == 1:
                    tensor.add_(0.1 * torch.rand_like(tensor))
                elif tensor.is_floating_point() and tensor.dim() > 1:
                    tensor.copy_(torch.randn_like(tensor) / tensor[0].numel() ** 0.5)
        found["--vocoder"].mean.zero_()
        found["--vocoder"].scale.fill_(1)
    return found


@pytest.fixture(scope="module")
def files(models, published, tmp_path_factory):
    """A complete import whose RMS2Sound file holds the ControlNet alone."""
    folder = tmp_path_factory.mktemp("huggingface")
    paths, tokenizer = published(SMALL, without=REPLACED)
    for option, model in models.items():
        path = paths[option] = folder / f"{option.strip('-')}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, path)
    return Files(paths, tokenizer)


@pytest.fixture(scope="module")
def imported(files, tmp_path_factory):
    root = tmp_path_factory.mktemp("bundles") / "imported"
    list(importer.write(plan(SMALL, files), root))
    return bundles.read(root)


@pytest.fixture(scope="module", autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def distance(actual: torch.Tensor, expected: torch.Tensor) -> float:
    assert actual.shape == expected.shape
    assert expected.std() > 1e-3
    return float((actual - expected).norm() / expected.norm())


def test_the_unet_computes_what_diffusers_does(models, imported):
    latents, embedding = torch.randn(2, 8, 32, 16), torch.randn(2, 512)
    timestep = torch.tensor([3, 901])
    expected = models["--unet"](latents, timestep, encoder_hidden_states=None, class_labels=embedding).sample
    assert distance(load_network(imported, "denoiser").branch(latents, timestep, embedding), expected) < TOLERANCE


def test_the_vae_computes_what_diffusers_does(models, imported):
    latents = torch.randn(2, 8, 16, 16)
    expected = models["--vae"].decode(latents / imported.manifest.vae_decoder.scale_factor).sample[:, 0]
    assert distance(load_network(imported, "vae_decoder")(latents), expected) < TOLERANCE


def test_the_vocoder_computes_what_transformers_does(models, imported):
    mel = torch.randn(2, 20, 64)
    assert distance(load_network(imported, "vocoder").untrimmed(mel), models["--vocoder"](mel)) < TOLERANCE


def test_clap_hears_texts_as_transformers_does(models, imported):
    model = models["--clap"]
    ids = torch.tensor([[0, 40, 50, 60, 2], [0, 70, 2, 1, 1]])
    mask = (ids != 1).long()
    pooled = model.text_model(input_ids=ids, attention_mask=mask).pooler_output
    expected = functional.normalize(model.text_projection(pooled), dim=-1)
    assert distance(load_network(imported, "clap_text")(ids, mask), expected) < TOLERANCE


def test_clap_hears_sounds_as_transformers_does(models, imported):
    model, network = models["--clap"], load_network(imported, "clap_audio")
    waveform = torch.randn(2, 163_840)
    pooled = model.audio_model(network.spectrogram(waveform)[:, None]).pooler_output
    expected = functional.normalize(model.audio_projection(pooled), dim=-1)
    assert distance(network(waveform), expected) < TOLERANCE


def test_nothing_is_left_over_but_what_is_known(files):
    unused = {path.stem: groups for path, groups in plan(SMALL, files).unused.items()}
    assert unused["unet"] == {}
    assert unused["vae"].keys() == {"VAE encoder"}
    assert unused["vocoder"] == {"constants": 2}
    assert unused["clap"] == {"CLAP heads for training": 2, "counters": 3}


def test_they_take_the_place_of_what_the_official_file_holds(files, published):
    paths, _ = published(SMALL)
    whole = Files({**files.checkpoints, "--rms2sound": paths["--rms2sound"]}, files.tokenizer)
    planned = plan(SMALL, whole)
    groups = planned.unused[paths["--rms2sound"]]
    assert {f"replaced by {option}" for option in ("--unet", "--vae", "--vocoder", "--clap")} <= groups.keys()
    parts = {key.split(".")[0]: origin.part.layout.option for key, origin in planned.origins["denoiser"].items()}
    assert parts == {"unet": "--unet", "control_net": "--rms2sound", "control_projection": "--rms2sound"}


def test_half_a_clap_completes_the_official_file(files, published, tmp_path, models):
    paths, _ = published(SMALL, without=("cond_stage_models.0.model.text",))
    text = {key: tensor for key, tensor in models["--clap"].state_dict().items() if key.startswith("text_")}
    torch.save(text, tmp_path / "text.bin")
    checkpoints = {**files.checkpoints, "--rms2sound": paths["--rms2sound"], "--clap": tmp_path / "text.bin"}
    origins = plan(SMALL, Files(checkpoints, files.tokenizer)).origins
    assert {origin.part.layout.option for origin in origins["clap_text"].values()} == {"--clap"}
    assert {origin.part.layout.option for origin in origins["clap_audio"].values()} == {"--rms2sound"}


def test_names_of_older_diffusers_are_known(files, models, imported, tmp_path):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for key, tensor in models["--vae"].state_dict().items():
        for new, name in old.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")
        tensors[key] = tensor
    assert tensors.keys() != models["--vae"].state_dict().keys()
    torch.save(tensors, tmp_path / "vae.bin")
    planned = plan(SMALL, Files({**files.checkpoints, "--vae": tmp_path / "vae.bin"}, files.tokenizer))
    list(importer.write(planned, tmp_path / "bundle"))
    file = bundles.weights_file("vae_decoder")
    assert (tmp_path / "bundle" / file).read_bytes() == imported.path(file).read_bytes()


def test_a_network_that_no_file_holds_is_missed(files):
    checkpoints = {option: path for option, path in files.checkpoints.items() if option != "--vae"}
    with pytest.raises(CheckpointError, match="lacks tensors of vae_decoder"):
        plan(SMALL, Files(checkpoints, files.tokenizer))


GONE = {
    "--unet": "time_embedding.linear_1.bias",
    "--vae": "post_quant_conv.weight",
    "--vocoder": "conv_post.bias",
    "--clap": "text_model.pooler.dense.bias",
}


@pytest.mark.parametrize(("option", "gone"), GONE.items(), ids=GONE.keys())
def test_a_tensor_too_many_or_too_few_is_named(files, models, tmp_path, option, gone):
    tensors = dict(models[option].state_dict())
    tensors["novelty.weight"] = tensors.pop(gone)
    torch.save(tensors, tmp_path / "changed.bin")
    with pytest.raises(CheckpointError) as caught:
        plan(SMALL, Files({**files.checkpoints, option: tmp_path / "changed.bin"}, files.tokenizer))
    assert f": {gone}" in str(caught.value)
    assert "has unexpected tensors: novelty.weight" in str(caught.value)


def test_clap_positions_that_do_not_count_up_are_refused(files, models, tmp_path):
    key = "text_model.embeddings.position_ids"
    torch.save(models["--clap"].state_dict() | {key: torch.arange(514).flip(0)[None]}, tmp_path / "clap.bin")
    with pytest.raises(CheckpointError, match=rf"clap\.bin .* its {key} are not 0, 1, 2"):
        plan(SMALL, Files({**files.checkpoints, "--clap": tmp_path / "clap.bin"}, files.tokenizer))


def test_a_vocoder_that_normalises_its_input_is_refused(files, models, tmp_path):
    torch.save(models["--vocoder"].state_dict() | {"mean": torch.full((64,), -4.0)}, tmp_path / "vocoder.bin")
    with pytest.raises(CheckpointError, match=r"vocoder\.bin .* its mean is not 0 everywhere"):
        plan(SMALL, Files({**files.checkpoints, "--vocoder": tmp_path / "vocoder.bin"}, files.tokenizer))


def test_swapped_files_are_recognised(files):
    swapped = {**files.checkpoints, "--unet": files.checkpoints["--vae"], "--vae": files.checkpoints["--unet"]}
    with pytest.raises(CheckpointError) as caught:
        plan(SMALL, Files(swapped, files.tokenizer))
    assert "which is given as --vae" in str(caught.value)
    assert "which is given as --unet" in str(caught.value)
