"""A CUDA machine that is not there, for tests of the CUDA path without a GPU.

Inside `simulated_cuda()` torch has two CUDA devices. Their tensors say `cuda:0` or `cuda:1`,
numbers are computed on the CPU, and CUDA's rules are enforced:

| module | what it stands for | what it sees |
|---|---|---|
| `timeline` | streams, events, the host | work that is not ordered behind what it needs |
| `memory` | the allocator, pools of graphs | memory that runs out, or is freed too early |
| `tensors` | tensors and operations | mixed devices; pinned copies that are not there yet |
| `graphs` | captures and replays | host reads, tensors that are not static, or are kept |
| `kernels` | the kernels of `harness.kernels` | launches on another device than the current one |
| `patches` | `torch.cuda` | |

What breaks a rule of CUDA raises what torch raises there. What CUDA would let pass, with wrong
numbers, is a line in `Machine.problems`. The machine cannot see the arithmetic of real kernels, nor
which of them the libraries choose.
"""

from simulated_cuda.machine import Machine
from simulated_cuda.patches import simulated_cuda

__all__ = ["Machine", "simulated_cuda"]
