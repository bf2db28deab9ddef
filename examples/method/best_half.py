"""Draw half of each of n images, and finish the one that a reward likes best so far."""

from harness import Canvas, Judge, Session


class BestHalf:
    branches = 2
    tokens_per_step = 1

    def __init__(self, reward: Judge, n: int = 4) -> None:
        self.reward = reward
        self.rows = n

    async def generate(self, prompt: str, s: Session) -> Canvas:
        halves = s.open(self.rows)
        await s.run(halves, until=s.num_tokens // 2)
        scores = await s.ask(self.reward, prompt, await s.render(halves))
        best = halves[scores.index(max(scores))]
        s.note(scores=scores)
        for canvas in halves:
            if canvas is not best:
                s.close(canvas)  # its slots go to other prompts
        await s.run([best])
        return best
