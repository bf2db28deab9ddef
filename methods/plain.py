"""Plain sampling: one candidate, drawn token by token. The baseline of every comparison."""

from __future__ import annotations

from harness import Canvas, Session


class Plain:
    """One image as the model draws it."""

    rows = 1
    branches = 2
    tokens_per_step = 1
    tree_capacity = 0

    async def generate(self, prompt: str, s: Session) -> Canvas:
        (canvas,) = s.open()
        await s.run([canvas])
        return canvas
