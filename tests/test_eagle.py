"""EAGLE's drafter is lossless whatever its layer; its features equal recomputed ones.

It serves no target but its own.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_batch_invariance import costs
from test_exactness import joint_probs, p_value
from test_lantern import own_cache as own_cache
from test_llamagen import tiny
from test_speculative import Alternating
from test_trees import BUSHY, GROWING, Seen
from toy import TEXTS, ToyModel, draw, draw_pairs, jobs

from harness.drafters.eagle import Eagle, Layer, LayerWeights, published, target_spec
from harness.engine.acceptance import Rule, coupled, exact
from harness.engine.draft_trees import Tree
from harness.engine.guidance import Sampling
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Scheduler
from harness.models.trunk import causal
from harness.records import Usage, UserError
from harness.training import loop as training
from harness.training.train_eagle import Lesson, new_layer, train
from methods.lantern import Lantern
from methods.plain import Plain
from methods.speculative import Speculative
from methods.vvs import VVS, Uniform


def layer(codes: int = 0, seed: int = 3) -> Layer:
    """A layer of small random weights."""
    made = Layer(ToyModel().trunk.spec, codes).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).double() * 0.2
    return made.requires_grad_(False)


def eagle(codes: int = 0, target: str = "") -> Eagle:
    """A drafter for the toy model; with `codes` it has a token embedding of its own."""
    return Eagle(lambda: LayerWeights(layer(codes).state_dict(), "toy layer", "toy", target))


# ------------------------------------------------------------------ losslessness


@pytest.mark.parametrize("shape", [3, BUSHY, GROWING])
@pytest.mark.parametrize("sampling", [Sampling(scale=2.0), Sampling(scale=1.0, top_k=5)])
def test_coupled_over_eagles_drafts_is_plain_token_for_token(
    shape: int | Tree, sampling: Sampling
) -> None:
    some = jobs(TEXTS, images=2)
    plain = draw(Plain(), some, sampling=sampling)
    drafted = draw(Speculative(eagle(), shape, coupled), some, sampling=sampling)
    for key, delivery in drafted.items():
        assert not delivery.error
        assert delivery.tokens == plain[key].tokens
        assert delivery.usage.drafted_positions > 0


@pytest.mark.parametrize("shape", [3, BUSHY, GROWING])
def test_greedy_is_greedy_plain(shape: int | Tree) -> None:
    greedy = Sampling(scale=2.0, temperature=0.0)
    plain = draw(Plain(), jobs(TEXTS), sampling=greedy)
    drafted = draw(Speculative(eagle(codes=32), shape), jobs(TEXTS), sampling=greedy)
    for key, delivery in drafted.items():
        assert delivery.tokens == plain[key].tokens


@pytest.mark.parametrize("shape", [BUSHY, GROWING])
def test_what_else_is_in_the_batch_changes_nothing(shape: Tree) -> None:
    some = jobs(TEXTS, images=2)

    def method() -> VVS:
        return VVS(eagle(), Uniform(2), shape, Lantern(5, delta=0.3))

    together = draw(method(), some)
    assert sum(delivery.usage.skipped for delivery in together.values()) > 6
    shuffled = random.Random(1).sample(some, len(some))
    for other in (shuffled, some[3:4]):
        for key, delivery in draw(method(), other).items():
            assert not delivery.error
            assert delivery.tokens == together[key].tokens
            assert delivery.notes == together[key].notes
            assert costs(delivery.usage) == costs(together[key].usage)


def test_the_joint_law_through_the_whole_sampler() -> None:
    small = ToyModel(grid=(1, 4), vocab=5, seed=4)
    sampling = Sampling(scale=2.0, top_k=4)
    drawn = draw_pairs(Speculative(eagle(), GROWING), 2_000, small, sampling)
    joint = joint_probs(small, sampling)
    possible = joint > 0
    cell = torch.cumsum(possible, 0) - 1
    assert p_value(cell[drawn], joint[possible]) > 1e-3


# ------------------------------------------------------------------ features and pairs


class DraftedByHand:
    """Two canvases that are drafted and verified by hand, so that tests can look inside.

    With `skip`, two tokens are committed that the target has not seen. `borrowed` then says which
    pairs of the first canvas were made of another position's feature, and of which.
    """

    STEPS = 6
    SKIP_AT = 4

    def __init__(self, shape: Tree, rule: Rule, skip: bool = False) -> None:
        self.model = ToyModel()
        self.drafter = eagle()
        self.sampler = Sampler(
            self.model,
            Sampling(scale=2.0),
            slots=4,
            tokens_per_step=8 + shape.nodes,
            tree_capacity=shape.nodes,
            hidden=True,
            prefill=(3, 4),
        )
        self.rows = [
            self.sampler.open(*self.sampler.contexts(text), i, Usage())
            for i, text in enumerate(TEXTS[:2])
        ]
        self.borrowed: dict[int, int] = {}
        for step in range(self.STEPS):
            drafts = self.drafter.propose(self.sampler, self.rows, shape)
            if skip and step == self.SKIP_AT:
                self._skip_two_tokens()
                drafts = self.drafter.propose(self.sampler, self.rows, shape)
            self.sampler.forward(self.rows, drafts)
            self.sampler.draw(self.rows, drafts, rule)
        self.drafter.propose(self.sampler, self.rows, shape)

    def _skip_two_tokens(self) -> None:
        _, start, _ = self.sampler.branch_spans(self.rows[0])[1]
        last_pair = start + self.rows[0].length - 1
        self.borrowed = {last_pair + k: last_pair - 2 + k for k in range(2)}
        for canvas in self.rows:
            self.sampler.commit(canvas, [1, 2])

    def teach(self, k: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Run the target without a cache over branch `k` of the first canvas.

        Returns what enters it [W, D], its features [W, D] and the context's length.
        """
        canvas = self.rows[0]
        context = canvas.contexts[k]
        tokens = torch.tensor(canvas.tokens)
        context_PD = self.model.context(context.text, context.like)
        x_WD = torch.cat((context_PD, self.model.embed(tokens, tokens)))

        positions = torch.arange(len(x_WD))[None]
        start = torch.tensor([len(context_PD)])
        features = self.model.forward(x_WD[None], positions, start, causal)
        return x_WD, features[0], int(start)


@pytest.mark.parametrize("skip", [False, True])
def test_features_and_pairs_equal_recomputed_ones(skip: bool) -> None:
    """Pairs of all committed positions but the last; those of skipped tokens borrow features."""
    run = DraftedByHand(BUSHY, coupled, skip)
    (engine,) = run.drafter.engines.values()
    assert run.rows[0].length >= 6
    for k, (slot, _, cached) in enumerate(run.sampler.branch_spans(run.rows[0])):
        x, feature, start = run.teach(k)
        assert cached == len(x) - 1
        kept = run.sampler.hidden_states(torch.tensor([slot]), torch.arange(cached)[None])[0]
        torch.testing.assert_close(kept, feature[:cached])

        used = feature[:cached].clone()
        for pair, source in run.borrowed.items():
            assert pair < cached
            used[pair] = feature[source]
        seen = Seen()
        places = torch.arange(1, len(x))[None]
        rotary = run.model.rotary(places, torch.tensor([start]))
        guess = engine.layer(x[None, 1:], used[None], rotary, seen)[0]

        keys, values = seen.layers[0]
        torch.testing.assert_close(engine.cache.keys[0, slot, :, :cached], keys)
        torch.testing.assert_close(engine.cache.values[0, slot, :, :cached], values)
        torch.testing.assert_close(engine.guess_SPD[slot, 0], guess[-1])
    assert bool(run.borrowed) == skip


class ShapeByPrompt(Alternating):
    """Drafts chains for one prompt, and trees for another."""

    def shape_of(self, prompt: str, step: int) -> int | Tree:
        return super().shape_of(prompt, 0)


def test_costs_do_not_depend_on_the_shapes_that_others_draft() -> None:
    some = jobs(["a cat", "a bird"])
    plain = draw(Plain(), some)
    together = draw(ShapeByPrompt(eagle(), BUSHY), some)
    for job in some:
        (alone,) = draw(ShapeByPrompt(eagle(), BUSHY), [job]).values()
        assert alone.tokens == together[job.key].tokens == plain[job.key].tokens
        assert costs(alone.usage) == costs(together[job.key].usage)


def test_drafted_positions_are_counted() -> None:
    """A pair is made once, and once more at most for a root; each fed node counts."""
    for delivery in draw(Speculative(eagle(), BUSHY, coupled), jobs(TEXTS[:2])).values():
        accepted = delivery.notes["accepted"]
        verifications = sum(accepted)  # type: ignore[arg-type]
        context = 1 + len(delivery.job.prompt.text.split())
        pairs = 2 * (context + 16)
        most = pairs + 2 * verifications * (BUSHY.fed + 1)
        assert delivery.usage.drafted_positions <= most


# ------------------------------------------------------------------ checkpoints


def write_checkpoint(folder: Path, codes: int = 32, **changed: torch.Tensor) -> Path:
    """Write the toy layer's weights in the published layout.

    `changed` replaces tensors by name; an empty tensor leaves one out.
    """
    state = layer(codes).state_dict()
    query, key, value = state["attention.wqkv.weight"].chunk(3)
    named = {
        "embed_tokens.weight": state["tokens.weight"],
        "fc.weight": state["fc.weight"],
        "fc.bias": state["fc.bias"],
        "layers.0.self_attn.q_proj.weight": query,
        "layers.0.self_attn.k_proj.weight": key,
        "layers.0.self_attn.v_proj.weight": value,
        "layers.0.self_attn.o_proj.weight": state["attention.wo.weight"],
        "layers.0.post_attention_layernorm.weight": state["ffn_norm.weight"],
        "layers.0.mlp.gate_proj.weight": state["feed_forward.w1.weight"],
        "layers.0.mlp.up_proj.weight": state["feed_forward.w3.weight"],
        "layers.0.mlp.down_proj.weight": state["feed_forward.w2.weight"],
    }
    kept = {
        name: tensor.contiguous() for name, tensor in (named | changed).items() if tensor.numel()
    }
    path = folder / "model.safetensors"
    save_file(kept, path)
    return path


def test_the_published_layout_drafts_what_its_weights_draft(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path)
    theirs = draw(Speculative(Eagle(lambda: published(str(path))), GROWING), jobs(TEXTS))
    for key, delivery in draw(Speculative(eagle(codes=32), GROWING), jobs(TEXTS)).items():
        assert delivery.tokens == theirs[key].tokens
        assert delivery.notes == theirs[key].notes


def test_other_weights_have_another_id(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    before = published(str(tmp_path)).id
    path = write_checkpoint(tmp_path, **{"fc.bias": torch.zeros(32)})
    assert published(str(path)).id != before


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"fc.weight": torch.zeros(32, 70)},
            r"tensor fc\.weight is \(32, 70\), toy needs \(32, 64\)",
        ),
        (
            {"layers.0.self_attn.v_proj.weight": torch.zeros(0)},
            r"lacks 'self_attn\.v_proj\.weight': it is no EAGLE",
        ),
        (
            {"embed_tokens.weight": torch.zeros(16, 32)},
            r"is for 16 codes, the model has 32: choose its drafter",
        ),
        (
            {"embed_tokens.weight": torch.zeros(32, 40)},
            r"tensor tokens\.weight is \(32, 40\), toy needs \(32, 32\)",
        ),
    ],
)
def test_a_checkpoint_of_another_target_or_layout_is_refused(
    tmp_path: Path, changed: dict[str, torch.Tensor], words: str
) -> None:
    model = ToyModel()
    path = write_checkpoint(tmp_path, **changed)
    with pytest.raises(UserError, match=words):
        draw(Speculative(Eagle(lambda: published(str(path))), 3), jobs(TEXTS), model=model)
    assert model.forwards == 0


def test_other_targets_are_refused_before_any_compute() -> None:
    model = ToyModel()
    words = r"was trained for weights of-yesterday, the model's are random: train it again"
    with pytest.raises(UserError, match=words):
        draw(Speculative(eagle(target="of-yesterday"), 3), jobs(TEXTS), model=model)

    model.collapse = True  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"set \+model\.collapse=false"):
        draw(Speculative(eagle(), 3), jobs(TEXTS), model=model)
    assert model.forwards == 0


def test_a_sampler_without_hidden_states_is_refused() -> None:
    sampler = Sampler(ToyModel(), Sampling(), slots=2, tokens_per_step=4)
    with pytest.raises(UserError, match=r"sampler\.hidden=false"):
        Scheduler(Speculative(eagle(), 3), sampler, seed=0)


def test_drafts_begin_after_the_first_token() -> None:
    sampler = Sampler(
        ToyModel(), Sampling(), slots=2, tokens_per_step=4, hidden=True, prefill=(3, 4)
    )
    canvas = sampler.open(*sampler.contexts("one"), 1, Usage())
    drafter = eagle()
    assert drafter.propose(sampler, [canvas], 3) == [None]
    sampler.forward([canvas], [None])
    assert drafter.propose(sampler, [canvas], 3) == [None]
    sampler.draw([canvas], [None], exact)
    (draft,) = drafter.propose(sampler, [canvas], 3)
    assert draft is not None
    assert len(draft) == 3
    assert draft.parents is None


def test_a_killed_training_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(collapse=False)
    arguments = (model, Sampling(scale=2.0), lambda rng: rng.choice(TEXTS))
    budget = {"minutes": 1e-9, "samples": 8 * 16, "batch": 8, "seed": 0}
    torch.manual_seed(1)
    whole = train(*arguments, tmp_path / "whole.pt", **budget)  # type: ignore[arg-type]

    monkeypatch.setattr(training.Alarm, "rings", lambda self: True)
    descend = training.descend
    steps = iter(range(13))

    def descend_or_die(*given: Any) -> None:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        descend(*given)

    path = tmp_path / "killed.pt"
    torch.manual_seed(1)
    with monkeypatch.context() as patch:
        patch.setattr(training, "descend", descend_or_die)
        with pytest.raises(KeyboardInterrupt):
            train(*arguments, path, **budget)  # type: ignore[arg-type]
    assert training.resume(path)[0].step == 13
    torch.manual_seed(2)
    continued = train(*arguments, path, **budget)  # type: ignore[arg-type]

    assert training.resume(path)[0].samples == 128
    for name, weight in whole.state_dict().items():
        assert torch.equal(continued.state_dict()[name], weight), name


def test_training_may_begin_with_a_trained_layer(tmp_path: Path) -> None:
    model = tiny(collapse=False)
    arguments = (model, Sampling(scale=2.0), lambda rng: rng.choice(TEXTS))
    first = tmp_path / "first.pt"
    train(*arguments, first, minutes=1e-9, samples=16, batch=8, seed=0)
    begun = tmp_path / "begun.pt"
    layer = train(*arguments, begun, minutes=0, batch=8, seed=0, warm=str(first))
    average = torch.load(first, weights_only=True)["average"]
    assert all(torch.equal(weight, average[name]) for name, weight in layer.state_dict().items())

    # A checkpoint of one's own goes before, and a layer of another model is refused.
    train(*arguments, begun, minutes=1e-9, samples=16, batch=8, seed=1, warm=str(first))
    assert training.resume(begun)[0].samples == 16
    with pytest.raises(UserError, match="is no checkpoint of this model's drafter"):
        train(*arguments, tmp_path / "other.pt", minutes=0, batch=8, seed=0, warm="pictogram_80")


def test_training_on_llamagen_makes_a_drafter_that_fits_it(tmp_path: Path) -> None:
    """The loss falls on a tiny model, and the checkpoint drafts for this model and no other."""
    model = tiny(collapse=False)
    sampling = Sampling(scale=2.0)
    path = tmp_path / "eagle.pt"
    train(model, sampling, lambda rng: rng.choice(TEXTS), path, minutes=0.03, batch=16, seed=0)

    # 1. The trained layer is better than a fresh one.
    lesson = Lesson(model, sampling, TEXTS, torch.randint(0, 8, (len(TEXTS), 16)))
    trained = new_layer(target_spec(model))
    fresh = new_layer(target_spec(model))
    trained.load_state_dict(torch.load(path, weights_only=True)["average"])
    losses = [
        lesson.loss(one, torch.Generator().manual_seed(0))[0].item() for one in (trained, fresh)
    ]
    assert losses[0] < losses[1]

    # 2. The checkpoint drafts for its model without changing an image.
    greedy = Sampling(scale=2.0, temperature=0.0)
    method = Speculative(Eagle(lambda: published(str(path))), GROWING)
    plain = draw(Plain(), jobs(TEXTS), model=model, sampling=greedy)  # type: ignore[arg-type]
    drafted = draw(method, jobs(TEXTS), model=model, sampling=greedy)  # type: ignore[arg-type]
    assert drafted.keys() == plain.keys()
    for key, delivery in drafted.items():
        assert delivery.tokens == plain[key].tokens

    # 3. It refuses other models.
    with pytest.raises(UserError, match=r"set \+model\.collapse=false"):
        Eagle(lambda: published(str(path))).expect_target(tiny())
    model.revision = "another"
    with pytest.raises(UserError, match="train it again"):
        Eagle(lambda: published(str(path))).expect_target(model)
