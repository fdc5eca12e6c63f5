"""The fixed geometry of one clip: what Video-Foley's networks were built for.

Everything the presets share. A longer video is a sequence of such clips (see `foley.windows`).
"""

CLIP_SECONDS = 10.0

# Video side (Video2RMS)
FRAME_RATE_HZ = 30
FRAME_HEIGHT = 256
FRAME_WIDTH = 344
LARGEST_FLOW = 20.0  # pixels either way that the bytes of the optical flow can say
CHUNK_PAIRS = 16  # frame pairs a call: 4.5 MB of frames, and a step in which the work can be stopped
CLIP_FRAMES = 300  # feature rows of a clip: FRAME_RATE_HZ * CLIP_SECONDS
CLASS_RATE_HZ = 125  # Video2RMS predicts loudness classes at this rate
CLIP_CLASSES = 1250  # CLASS_RATE_HZ * CLIP_SECONDS

# Sound side (RMS2Sound); AudioLDM works on 10.24 s so that every length divides by a power of two
SAMPLE_RATE_HZ = 16_000
HOP = 160  # samples between two mel frames and two envelope frames
ENVELOPE_RATE_HZ = SAMPLE_RATE_HZ // HOP  # 100
CLIP_ENVELOPE = 1_000  # envelope frames that hold the clip: ENVELOPE_RATE_HZ * CLIP_SECONDS
PADDED_ENVELOPE = 1_024  # ... and with the zeros that fill 10.24 s
PADDED_SAMPLES = PADDED_ENVELOPE * HOP  # 163,840

MEL_BINS = 64
LATENT_CHANNELS = 8
LATENT_REDUCTION = 4  # mel frames and bins per latent cell, both ways
LATENT_FRAMES = PADDED_ENVELOPE // LATENT_REDUCTION  # 256
LATENT_BINS = MEL_BINS // LATENT_REDUCTION  # 16

EMBEDDING = 512  # width of a CLAP embedding
