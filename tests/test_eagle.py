"""EAGLE's drafter: lossless whatever its layer, from features that equal recomputed ones, for its
own target only.
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
from test_trees import BUSHY, GROWING, Seen
from toy import TEXTS, ToyModel, draw, jobs

from harness.drafters.eagle import Eagle, Layer, Trained, published, target_spec
from harness.engine.acceptance import Rule, coupled, exact
from harness.engine.draft_trees import Tree
from harness.engine.guidance import Sampling
from harness.engine.sampler import Sampler
from harness.models.trunk import causal
from harness.records import Usage, UserError
from harness.training.train_eagle import Lesson, new_layer, train
from methods.lantern import Lantern
from methods.plain import Plain
from methods.speculative import Speculative
from methods.vvs import VVS, Uniform


def layer(codes: int = 0, seed: int = 3) -> Layer:
    """Random weights, but a projection that mostly hands the feature on."""
    made = Layer(ToyModel().trunk.spec, codes).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).double() * 0.2
    return made.requires_grad_(False)


def eagle(codes: int = 0, target: str = "") -> Eagle:
    return Eagle(lambda: Trained(layer(codes).state_dict(), "toy layer", "toy", target))


@pytest.mark.parametrize("shape", [3, BUSHY, GROWING])
@pytest.mark.parametrize("sampling", [Sampling(scale=2.0), Sampling(scale=1.0, top_k=5)])
def test_coupled_over_eagles_drafts_is_plain_token_for_token(
    shape: int | Tree, sampling: Sampling
) -> None:
    plain = draw(Plain(), jobs(TEXTS, images=2), sampling=sampling)
    for key, delivery in draw(
        Speculative(eagle(), shape, coupled), jobs(TEXTS, images=2), sampling=sampling
    ).items():
        assert not delivery.error
        assert delivery.tokens == plain[key].tokens
        assert delivery.usage.drafted_positions > 0


@pytest.mark.parametrize("shape", [3, BUSHY, GROWING])
def test_greedy_is_greedy_plain(shape: int | Tree) -> None:
    greedy = Sampling(scale=2.0, temperature=0.0)
    plain = draw(Plain(), jobs(TEXTS), sampling=greedy)
    for key, delivery in draw(
        Speculative(eagle(codes=32), shape), jobs(TEXTS), sampling=greedy
    ).items():
        assert delivery.tokens == plain[key].tokens


@pytest.mark.parametrize("shape", [BUSHY, GROWING])
def test_company_changes_nothing(shape: Tree) -> None:
    some = jobs(TEXTS, images=2)

    def method() -> VVS:
        return VVS(eagle(), Uniform(2), shape, Lantern(5, delta=0.3))

    together = draw(method(), some)
    assert sum(delivery.usage.skipped for delivery in together.values()) > 6
    for other in (random.Random(1).sample(some, len(some)), some[3:4]):
        for key, delivery in draw(method(), other).items():
            assert not delivery.error
            assert delivery.tokens == together[key].tokens
            assert delivery.notes == together[key].notes
            assert costs(delivery.usage) == costs(together[key].usage)


def test_the_joint_law_through_the_whole_sampler() -> None:
    tiny = ToyModel(grid=(1, 4), vocab=5, seed=4)
    sampling = Sampling(scale=2.0, top_k=4)
    deliveries = draw(
        Speculative(eagle(), GROWING),
        jobs(["a cat"], 2_000),
        model=tiny,
        sampling=sampling,
        slots=256,
    )
    pairs = torch.tensor([d.tokens[0] * 5 + d.tokens[1] for d in deliveries.values()])
    joint = joint_probs(tiny, sampling)
    kept = joint > 0
    assert p_value((torch.cumsum(kept, 0) - 1)[pairs], joint[kept]) > 1e-3


class Followed:
    """A canvas that is drafted and verified by hand, so that sampler and drafter can be looked
    into.
    """

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
        self.stale: dict[
            int, int
        ] = {}  # pairs made of features that were not their own, and whose those were
        for round_ in range(6):
            drafts = self.drafter.propose(self.sampler, self.rows, shape)
            if skip and round_ == 4:
                for i, canvas in enumerate(self.rows):
                    before = canvas.length
                    self.sampler.commit(canvas, [1, 2])
                    start = self.sampler.branch_spans(canvas)[1][1]
                    if i == 0:
                        self.stale = {
                            start + before - 1 + k: start + before - 3 + k for k in range(2)
                        }
                drafts = self.drafter.propose(self.sampler, self.rows, shape)
            self.sampler.forward(self.rows, drafts)
            self.sampler.draw(self.rows, drafts, rule)
        self.drafter.propose(self.sampler, self.rows, shape)

    def teacher(self, k: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """What enters the target and its features, of one forward without a cache; and the
        context's length.
        """
        canvas = self.rows[0]
        context = canvas.contexts[k]
        tokens = torch.tensor(canvas.tokens)
        x = torch.cat(
            (self.model.context(context.text, context.like), self.model.embed(tokens, tokens))
        )
        start = torch.tensor([len(x) - len(tokens)])
        return (
            x,
            self.model.forward(x[None], torch.arange(len(x))[None], start, causal)[0],
            int(start),
        )


@pytest.mark.parametrize("skip", [False, True])
def test_features_and_pairs_equal_recomputed_ones(skip: bool) -> None:
    """Of every committed position but the last; where tokens were skipped, the features of as many
    positions before.
    """
    run = Followed(BUSHY, coupled, skip)
    engine: Any = run.drafter._engine
    assert run.rows[0].length >= 6
    for k, (slot, _, cached) in enumerate(run.sampler.branch_spans(run.rows[0])):
        x, feature, start = run.teacher(k)
        assert cached == len(x) - 1
        kept = run.sampler.hidden_states(torch.tensor([slot]), torch.arange(cached)[None])[0]
        torch.testing.assert_close(kept, feature[:cached])
        used = feature[:cached].clone()
        for pair, source in run.stale.items():
            assert pair < cached
            used[pair] = feature[source]
        seen = Seen()
        places = torch.arange(1, len(x))[None]
        rotary = run.model.rotary(places, torch.tensor([start]))
        guess = engine.layer(x[None, 1:], used[None], rotary, seen)[0]
        torch.testing.assert_close(engine.cache.keys[0, slot, :, :cached], seen.layers[0][0])
        torch.testing.assert_close(engine.cache.values[0, slot, :, :cached], seen.layers[0][1])
        torch.testing.assert_close(engine._guess_SPD[slot, 0], guess[-1])
    assert bool(run.stale) == skip


def test_what_is_drafted_is_counted() -> None:
    """Pairs of what is committed are made once, and once more at most for the root; each fed node
    counts.
    """
    for delivery in draw(Speculative(eagle(), BUSHY, coupled), jobs(TEXTS[:2])).values():
        rounds = sum(delivery.notes["accepted"])  # type: ignore[arg-type]
        context = (
            1 + len(TEXTS[0].split())
            if delivery.job.prompt.text == TEXTS[0]
            else 1 + len(TEXTS[1].split())
        )
        pairs = 2 * (context + 16)
        assert delivery.usage.drafted_positions <= pairs + 2 * rounds * (BUSHY.fed + 1)


# ------------------------------------------------------------------ checkpoints


def synthetic(folder: Path, codes: int = 32, **changed: torch.Tensor) -> Path:
    """A checkpoint of the published layout with the toy layer's weights."""
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
    path = folder / "model.safetensors"
    save_file(
        {name: tensor.contiguous() for name, tensor in (named | changed).items() if tensor.numel()},
        path,
    )
    return path


def test_the_published_layout_drafts_what_its_weights_draft(tmp_path: Path) -> None:
    path = synthetic(tmp_path)
    theirs = draw(Speculative(Eagle(lambda: published(str(path))), GROWING), jobs(TEXTS))
    for key, delivery in draw(Speculative(eagle(codes=32), GROWING), jobs(TEXTS)).items():
        assert delivery.tokens == theirs[key].tokens
        assert delivery.notes == theirs[key].notes
    assert (
        published(str(tmp_path)).id
        != published(str(synthetic(tmp_path, **{"fc.bias": torch.zeros(32)}))).id
    )


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
    path = synthetic(tmp_path, **changed)
    with pytest.raises(UserError, match=words):
        draw(Speculative(Eagle(lambda: published(str(path))), 3), jobs(TEXTS), model=model)
    assert model.forwards == 0


def test_other_targets_are_refused_before_any_compute() -> None:
    model = ToyModel()
    with pytest.raises(
        UserError,
        match=r"was trained for weights of-yesterday, the model's are random: train it again",
    ):
        draw(Speculative(eagle(target="of-yesterday"), 3), jobs(TEXTS), model=model)
    model.collapse = True  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"set \+model\.collapse=false"):
        draw(Speculative(eagle(), 3), jobs(TEXTS), model=model)
    assert model.forwards == 0
    with pytest.raises(UserError, match=r"sampler\.hidden=false"):
        from harness.engine.scheduler import Scheduler

        Scheduler(
            Speculative(eagle(), 3),
            Sampler(ToyModel(), Sampling(), slots=2, tokens_per_step=4),
            seed=0,
        )


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


def test_training_on_llamagen_makes_a_drafter_that_fits_it(tmp_path: Path) -> None:
    """The script's loop on a tiny one: the loss falls, and the checkpoint drafts for this model and
    for no other.
    """
    model = tiny(collapse=False)
    path = tmp_path / "eagle.pt"
    train(
        model,
        Sampling(scale=2.0),
        lambda rng: rng.choice(TEXTS),
        path,
        minutes=0.03,
        batch=16,
        seed=0,
    )
    lesson = Lesson(model, Sampling(scale=2.0), TEXTS, torch.randint(0, 8, (len(TEXTS), 16)))
    trained = new_layer(target_spec(model))
    fresh = new_layer(target_spec(model))
    trained.load_state_dict(torch.load(path, weights_only=True)["average"])
    losses = [
        lesson.loss(one, torch.Generator().manual_seed(0))[0].item() for one in (trained, fresh)
    ]
    assert losses[0] < losses[1]
    greedy = Sampling(scale=2.0, temperature=0.0)
    plain = draw(Plain(), jobs(TEXTS), model=model, sampling=greedy)  # type: ignore[arg-type]
    drafted = draw(
        Speculative(Eagle(lambda: published(str(path))), GROWING),
        jobs(TEXTS),
        model=model,
        sampling=greedy,
    )  # type: ignore[arg-type]
    assert {key: d.tokens for key, d in drafted.items()} == {
        key: d.tokens for key, d in plain.items()
    }
    with pytest.raises(UserError, match=r"set \+model\.collapse=false"):
        Eagle(lambda: published(str(path))).expect_target(tiny())
    model.revision = "another"
    with pytest.raises(UserError, match="train it again"):
        Eagle(lambda: published(str(path))).expect_target(model)
