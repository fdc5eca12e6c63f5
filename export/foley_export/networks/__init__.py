"""The exported networks, one module per network."""

from foley_export.networks.bn_inception import FlowFeatures, RgbFeatures
from foley_export.networks.clap_audio import ClapAudio
from foley_export.networks.clap_text import ClapText
from foley_export.networks.denoiser import Denoiser
from foley_export.networks.network import Network
from foley_export.networks.optical_flow import OpticalFlow, OpticalFlowWarm
from foley_export.networks.vae_decoder import VaeDecoder
from foley_export.networks.video2rms import Video2RMS
from foley_export.networks.vocoder import Vocoder

NETWORKS: dict[str, type[Network]] = {
    network.stage_name: network
    for network in (
        OpticalFlow,
        OpticalFlowWarm,
        RgbFeatures,
        FlowFeatures,
        Video2RMS,
        ClapText,
        ClapAudio,
        Denoiser,
        VaeDecoder,
        Vocoder,
    )
}
"""Stage name -> network class, in pipeline order."""
