"""Fixed sizes and rates of a clip, the input of Video-Foley's networks.

They are the same for all presets. A longer video is a sequence of overlapping clips (see `foley.windows`).
"""

CLIP_SECONDS = 10.0

# Video (Video2RMS)
FRAME_RATE_HZ = 30
FRAME_HEIGHT = 256
FRAME_WIDTH = 344
LARGEST_FLOW = 20.0  # range of the 8-bit optical flow: +-20 pixels
CHUNK_PAIRS = 16  # frame pairs per call: 4.5 MB of frames; also the granularity of cancellation
CLIP_FRAMES = 300  # feature rows of a clip: FRAME_RATE_HZ * CLIP_SECONDS
CLASS_RATE_HZ = 125  # rate of the loudness classes that Video2RMS predicts
CLIP_CLASSES = 1250  # CLASS_RATE_HZ * CLIP_SECONDS

# Audio (RMS2Sound); AudioLDM processes 10.24 s so that every length is divisible by a power of two
SAMPLE_RATE_HZ = 16_000
HOP = 160  # samples per mel frame and per envelope frame
ENVELOPE_RATE_HZ = SAMPLE_RATE_HZ // HOP  # 100
CLIP_ENVELOPE = 1_000  # envelope frames of a clip: ENVELOPE_RATE_HZ * CLIP_SECONDS
PADDED_ENVELOPE = 1_024  # the same, zero-padded to 10.24 s
PADDED_SAMPLES = PADDED_ENVELOPE * HOP  # 163,840

MEL_BINS = 64
LATENT_CHANNELS = 8
LATENT_REDUCTION = 4  # downsampling factor of the VAE, along mel frames and along mel bins
LATENT_FRAMES = PADDED_ENVELOPE // LATENT_REDUCTION  # 256
LATENT_BINS = MEL_BINS // LATENT_REDUCTION  # 16

EMBEDDING_DIM = 512  # width of a CLAP embedding
