"""Video in, sound out: the SDK and the command line of Video-Foley."""

from foley_client.embedded import embedded_triton
from foley_client.foley import Foley, Take
from foley_client.prompt import Prompt
from foley_client.triton import Triton
from foley_client.watch import Watch

__all__ = ["Foley", "Prompt", "Take", "Triton", "Watch", "embedded_triton"]
