#!/usr/bin/env bash
# torch.utils.flop_counter counts the backward pass of a grouped convolution as if it were a dense one.
#
# torch 2.13.0 (2.14.1 does the same), on the meta device. A convolution's two backward passes, for its input and for
# its weight, take twice the products of the forward pass. Seen for a 1-D convolution of 64 channels, 3 taps, 32 steps:
# dense 0.79 and 1.57 MFLOP, ratio 2; depthwise (64 groups) 0.012 and 0.80 MFLOP, ratio 65: each of the 64 outputs of
# the weight's gradient is charged with all 64 inputs. A network with depthwise layers looks 1.1 to many times too
# expensive in training; the forward count is right.
#
# Exit status 0: as described; 1: the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import torch
from torch.utils.flop_counter import FlopCounterMode


def flops(groups: int, backward: bool) -> int:
    with torch.device("meta"):
        layer = torch.nn.Conv1d(64, 64, 3, padding=1, groups=groups)
        x = torch.zeros(1, 64, 32, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            y = layer(x)
            if backward:
                y.sum().backward()
    return counter.get_total_flops()


print(f"torch {torch.__version__}")
ratios = {}
for groups in (1, 64):
    forward = flops(groups, False)
    ratios[groups] = (flops(groups, True) - forward) / forward
    print(f"{groups:2d} groups: forward {forward / 1e6:.3f} MFLOP, backward / forward = {ratios[groups]:g}")
raise SystemExit(not (ratios[1] == 2 and ratios[64] > 10))
END
