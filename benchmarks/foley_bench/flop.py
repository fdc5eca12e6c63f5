"""How much arithmetic a PyTorch call is."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def count_flop(call: Callable[[], object]) -> int:
    """Floating-point operations of `call` in matrix products and convolutions."""
    aten = torch.ops.aten
    with FlopCounterMode(
        display=False,
        custom_mapping={  # the two that PyTorch computes in one operator on CPU and does not count
            aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop,
            aten.mkldnn_rnn_layer: _lstm_flop,
        },
    ) as counter:
        call()
    return counter.get_total_flops()


def _attention_flop(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _lstm_flop(inputs: Sequence[int], of_input: Sequence[int], of_state: Sequence[int], *_: Any, **__: Any) -> int:
    """One direction of a layer, from the shapes of its input [..., C] and of its two weight matrices."""
    return 2 * math.prod(inputs[:-1]) * (math.prod(of_input) + math.prod(of_state))
