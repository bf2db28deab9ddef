"""One thread: two that spin on shared cores are slower, and reductions keep their order."""

import torch

torch.set_num_threads(1)
