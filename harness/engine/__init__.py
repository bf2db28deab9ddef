"""The shared batched engine: canvases, forwards, draws, sessions and the scheduler."""
