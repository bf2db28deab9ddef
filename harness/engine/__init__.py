"""The shared batched sampler: canvases, slots, forwards, draws, sessions and the scheduler."""
