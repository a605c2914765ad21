"""Networks prepared for training: their device, the memory layout that convolutions like, batch
norms of all ranks."""

import torch
from torch import nn

from aux_code.batch_norm import synchronise_batch_norms
from aux_code.inference import keep_freed_memory

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Dimensions of a convolution's weight, of pictures or of clips -> layout."""


def prepare_for_training(network: nn.Module, device: torch.device) -> nn.Module:
    """The network on `device` with channels-last weights, which its activations follow.

    On a CPU the process's allocator keeps freed memory from now on. Under torchrun batch norms take
    their statistics over the batches of all ranks. The state dict keeps its names.
    """
    if device.type == "cpu":
        keep_freed_memory()
    network = network.to(device)
    for weight in network.parameters():
        if weight.dim() in _CHANNELS_LAST:
            weight.data = weight.data.contiguous(memory_format=_CHANNELS_LAST[weight.dim()])
    return synchronise_batch_norms(network)
