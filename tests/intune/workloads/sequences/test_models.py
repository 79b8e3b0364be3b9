"""BERT4Rec, SASRec and GRU4Rec: numerics against torch's own modules and the papers' equations; what they can see."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intune.errors import ConfigError
from intune.pipelines.schema import Ragged
from intune.workloads.sequences.bert4rec import BERT4Rec, BERT4RecConfig
from intune.workloads.sequences.draws import Cloze, DrawNegatives
from intune.workloads.sequences.gru4rec import GRU4Rec, GRU4RecConfig
from intune.workloads.sequences.sasrec import SASRec, SASRecConfig
from intune.workloads.sequences.stages import IGNORED, MaskNext, ShiftTargets, Window
from tests.intune.workloads.sequences.test_attention import reference

ITEMS = 11
BERT = BERT4RecConfig(items=ITEMS, length=6, width=12, layers=2, heads=3, dropout=0.0)
SAS = SASRecConfig(items=ITEMS, length=6, width=12, layers=2, heads=2, dropout=0.0)
GRU = GRU4RecConfig(items=ITEMS, length=6, width=10, dropout=0.0)

SESSIONS = Ragged(np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 2, 3]), np.array([0, 3, 10, 12]))


def spread(model: nn.Module, seed: int = 0) -> None:
    """Larger weights than initial ones, so that a mistake shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4, generator=generator)


def torch_encoder(model: BERT4Rec | SASRec, norm: nn.LayerNorm | None) -> nn.TransformerEncoder:
    layers = [reference(model.config.block, block) for block in model.blocks]  # type: ignore[arg-type]
    encoder = nn.TransformerEncoder(layers[0], len(layers), norm=norm, enable_nested_tensor=False)
    encoder.layers = nn.ModuleList(layers)
    return encoder


def test_bert4rec_is_torchs_encoder_between_its_embeddings_and_its_tied_output() -> None:
    model = BERT4Rec(BERT)
    spread(model)
    sequence = torch.tensor([[ITEMS, ITEMS, 3, 4, ITEMS + 1, 5], [1, 2, 3, 4, 5, ITEMS + 1]])
    present = sequence != ITEMS
    x = F.layer_norm(
        model.items.weight[sequence] + model.positions.weight, (12,), model.norm.weight, model.norm.bias
    )
    hidden = torch_encoder(model, None)(x, src_key_padding_mask=~present)
    torch.testing.assert_close(model.encode(sequence)[present], hidden[present])
    # softmax(gelu(dense(h)) Eᵀ + b), with no scores for padding and mask.
    expected = (
        F.gelu(hidden @ model.dense.weight.T + model.dense.bias) @ model.items.weight[:ITEMS].T + model.bias
    )
    torch.testing.assert_close(model(sequence)[present], expected[present])
    torch.testing.assert_close(model.scores({"sequence": sequence}), expected[:, -1])


def test_bert4recs_loss_is_the_mean_cross_entropy_of_masked_items() -> None:
    model = BERT4Rec(BERT)
    spread(model)
    batch = {
        "sequence": torch.tensor([[1, ITEMS + 1, 3, 4, ITEMS + 1, 6]]),
        "target": torch.tensor([[IGNORED, 2, IGNORED, IGNORED, 5, IGNORED]]),
    }
    log_probabilities = F.log_softmax(model(batch["sequence"])[0], dim=-1)
    expected = -(log_probabilities[1, 2] + log_probabilities[4, 5]) / 2
    torch.testing.assert_close(model.loss(batch), expected)


def test_bert4rec_sees_both_sides_and_no_padding() -> None:
    model = BERT4Rec(BERT)
    spread(model)
    one = torch.tensor([[ITEMS, ITEMS, 3, 4, ITEMS + 1, 5]])
    later = torch.tensor([[ITEMS, ITEMS, 3, 4, ITEMS + 1, 6]])
    assert not torch.allclose(model(one)[0, 2], model(later)[0, 2])
    with torch.no_grad():
        before = model(one)[0, 2:]
        model.items.weight[ITEMS] += 1  # the embedding of padding
        torch.testing.assert_close(model(one)[0, 2:], before)


def test_sasrec_is_torchs_causal_pre_norm_encoder() -> None:
    model = SASRec(SAS)
    spread(model)
    sequence = torch.tensor([[ITEMS, ITEMS, 3, 4, 7, 5], [1, 2, 3, 4, 5, 6]])
    present = sequence != ITEMS
    x = model.items.weight[sequence] * 12**0.5 + model.positions.weight
    mask = torch.triu(torch.ones(6, 6, dtype=torch.bool), 1)
    hidden = torch_encoder(model, model.norm)(x, mask=mask, src_key_padding_mask=~present)
    torch.testing.assert_close(model.encode(sequence)[present], hidden[present])
    torch.testing.assert_close(
        model.scores({"sequence": sequence}), hidden[:, -1] @ model.items.weight[:ITEMS].T
    )


@pytest.mark.parametrize("make", [lambda: SASRec(SAS), lambda: GRU4Rec(GRU)])
def test_what_comes_later_does_not_change_what_was_predicted(make: Any) -> None:
    model = make()
    spread(model)
    one = torch.tensor([[1, 2, 3, 4, 5, 6]])
    for changed in range(1, 6):
        other = one.clone()
        other[0, changed] = 10
        torch.testing.assert_close(model(other)[0, :changed], model(one)[0, :changed])
        assert not torch.allclose(model(other)[0, changed], model(one)[0, changed])


def test_sasrecs_losses_are_those_of_the_paper_and_of_a_softmax() -> None:
    model = SASRec(SAS)
    spread(model)
    sequence = torch.tensor([[ITEMS, 1, 2, 3, 4, 5]])
    target = torch.tensor([[IGNORED, 2, 3, 4, 5, 6]])
    negative = torch.tensor([[0, 7, 8, 9, 10, 7]])
    scores = model(sequence)[0]
    better = torch.stack([scores[place, item] for place, item in enumerate(target[0].tolist()) if place])
    worse = torch.stack([scores[place, item] for place, item in enumerate(negative[0].tolist()) if place])
    expected = -(better.sigmoid().log() + (1 - worse.sigmoid()).log()).mean()
    batch = {"sequence": sequence, "target": target, "negative": negative}
    torch.testing.assert_close(model.loss(batch), expected)
    soft = copy.deepcopy(model)
    soft.config = SASRecConfig(**{**vars(SAS), "loss": "softmax"})
    torch.testing.assert_close(soft.loss(batch), F.cross_entropy(scores[1:], target[0, 1:]))


def gru_by_hand(x: Tensor, gru: nn.GRU) -> Tensor:
    """Cho et al. 2014 in torch's arrangement: r, z, n; h' = (1 − z) n + z h."""
    inputs, hidden = gru.weight_ih_l0.chunk(3), gru.weight_hh_l0.chunk(3)
    input_bias, hidden_bias = gru.bias_ih_l0.chunk(3), gru.bias_hh_l0.chunk(3)
    h = torch.zeros(gru.hidden_size)
    states = []
    for vector in x:
        reset = torch.sigmoid(inputs[0] @ vector + input_bias[0] + hidden[0] @ h + hidden_bias[0])
        update = torch.sigmoid(inputs[1] @ vector + input_bias[1] + hidden[1] @ h + hidden_bias[1])
        new = torch.tanh(inputs[2] @ vector + input_bias[2] + reset * (hidden[2] @ h + hidden_bias[2]))
        h = (1 - update) * new + update * h
        states.append(h)
    return torch.stack(states)


@pytest.mark.parametrize("loss", ["bce", "softmax"])
def test_a_batch_without_any_target_costs_nothing_and_changes_nothing(loss: Any) -> None:
    """Sessions of one item: a batch that by chance has no others must not end the training, nor spoil it."""
    batch = {"sequence": torch.full((2, 4), 9), "target": torch.full((2, 4), IGNORED)}
    batch["negative"] = torch.zeros(2, 4, dtype=torch.int64)
    for model in (
        SASRec(SASRecConfig(items=9, length=4, width=8, layers=1, loss=loss)),
        GRU4Rec(GRU4RecConfig(items=9, length=4, width=8)),
        BERT4Rec(BERT4RecConfig(items=9, length=4, width=8)),
    ):
        assert model(batch["sequence"][:0]).shape == (0, 4, 9)
        cost = model.loss(batch)
        cost.backward()
        assert cost.item() == 0.0
        for parameter in model.parameters():
            assert parameter.grad is None or not parameter.grad.any()


def test_gru4rec_is_a_gru_over_each_session_whatever_its_padding() -> None:
    model = GRU4Rec(GRU)
    spread(model)
    short, long = torch.tensor([3, 4]), torch.tensor([1, 2, 3, 4, 5, 6])
    sequence = torch.stack([F.pad(short, (0, 4), value=ITEMS), long])
    scores = model.scores({"sequence": sequence})
    for row, session in enumerate((short, long)):
        states = gru_by_hand(model.items.weight[session], model.gru)
        torch.testing.assert_close(model.encode(sequence)[row, : len(session)], states)
        torch.testing.assert_close(scores[row], states[-1] @ model.items.weight[:ITEMS].T + model.bias)


def test_gru4recs_loss_is_the_mean_cross_entropy_of_next_items() -> None:
    model = GRU4Rec(GRU)
    spread(model)
    block = ShiftTargets(items=ITEMS)(Window(length=7, items=ITEMS, side="right")({"items": SESSIONS}))
    batch = {name: torch.as_tensor(block[name]) for name in ("sequence", "target")}
    losses = []
    for row in range(3):
        session = SESSIONS.values[SESSIONS.offsets[row] : SESSIONS.offsets[row + 1]][-7:]
        states = gru_by_hand(model.items.weight[torch.as_tensor(session[:-1])], model.gru)
        logits = states @ model.items.weight[:ITEMS].T + model.bias
        losses += list(-F.log_softmax(logits, dim=1)[range(len(session) - 1), session[1:]])
    torch.testing.assert_close(model.loss(batch), torch.stack(losses).mean())


def batches_of(model: str) -> dict[str, Tensor]:
    if model == "bert4rec":
        block = Cloze(items=ITEMS, mask_share=0.5)(Window(length=6, items=ITEMS)({"items": SESSIONS}))
    else:
        side: Any = "left" if model == "sasrec" else "right"
        block = ShiftTargets(items=ITEMS)(Window(length=7, items=ITEMS, side=side)({"items": SESSIONS}))
        block = DrawNegatives(items=ITEMS)(block)
    return {name: torch.as_tensor(block[name]) for name in block if name != "items"}


MODELS: dict[str, Any] = {
    "bert4rec": lambda seed: BERT4Rec(BERT, seed=seed),
    "sasrec": lambda seed: SASRec(SAS, seed=seed),
    "gru4rec": lambda seed: GRU4Rec(GRU, seed=seed),
}


@pytest.mark.parametrize("name", MODELS)
def test_initial_values_are_the_seeds_alone(name: str) -> None:
    one, same, other = MODELS[name](1), MODELS[name](1), MODELS[name](2)
    for mine, its in zip(one.parameters(), same.parameters(), strict=True):
        assert torch.equal(mine, its)
    assert not torch.equal(one.items.weight, other.items.weight)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    model = MODELS[name](0).double()
    spread(model)
    batch = batches_of(name)
    loss = model.loss(batch)
    loss.backward()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.grad is None or not parameter.grad.any():
            continue
        place = int(parameter.grad.abs().flatten().argmax())
        if torch.rand((), generator=generator) < 0.5:
            place = int(torch.randint(parameter.numel(), (), generator=generator))
        flat, step = parameter.data.view(-1), 1e-6
        flat[place] += step
        above = model.loss(batch).item()
        flat[place] -= 2 * step
        below = model.loss(batch).item()
        flat[place] += step
        assert parameter.grad.flatten()[place].item() == pytest.approx(
            (above - below) / (2 * step), rel=1e-4, abs=1e-7
        )


@pytest.mark.parametrize("name", MODELS)
def test_a_few_sessions_can_be_learned_by_heart(name: str) -> None:
    model = MODELS[name](0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    batch = batches_of(name)
    for _ in range(75):
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    known = Ragged(np.array([1, 2, 4, 5, 6, 7, 8, 9, 2]), np.array([0, 2, 8, 9]))
    side: Any = "right" if name == "gru4rec" else "left"
    block = Window(length=6, items=ITEMS, side=side)({"items": known})
    if name == "bert4rec":
        assert loss.item() < 0.1
        return
    assert model.scores({"sequence": torch.as_tensor(block["sequence"])}).argmax(dim=1).tolist() == [3, 10, 3]


def test_bert4rec_learns_to_fill_in_the_next_item() -> None:
    model = BERT4Rec(BERT)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    window = Window(length=6, items=ITEMS)({"items": SESSIONS})
    for seed in range(75):
        block = Cloze(items=ITEMS, mask_share=0.4, seed=seed)(window)
        optimizer.zero_grad()
        model.loss({name: torch.as_tensor(block[name]) for name in ("sequence", "target")}).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    known = Ragged(np.array([1, 2, 4, 5, 6, 7, 8, 9, 2]), np.array([0, 2, 8, 9]))
    block = MaskNext(items=ITEMS)(Window(length=6, items=ITEMS)({"items": known}))
    assert model.scores({"sequence": torch.as_tensor(block["sequence"])}).argmax(dim=1).tolist() == [3, 10, 3]


def test_shapes_are_those_of_the_paper() -> None:
    config = BERT4RecConfig.beauty(items=100)
    assert (config.length, config.width, config.layers, config.heads) == (20, 512, 2, 2)
    assert config.block.feed_forward == 2048
    from_text = BERT4RecConfig.beauty_from_text(items=100)
    assert (from_text.width, from_text.layers, from_text.heads, from_text.mask_share) == (208, 3, 3, 0.5)
    with torch.device("meta"):
        model = BERT4Rec(BERT4RecConfig(items=100, width=8, heads=2, layers=1, length=5))
    block = 4 * (8 * 8 + 8) + 2 * 8 * 32 + 32 + 8 + 4 * 8
    assert sum(p.numel() for p in model.parameters()) == 102 * 8 + 5 * 8 + 16 + block + (64 + 8) + 100


@pytest.mark.parametrize(
    "make",
    [
        lambda: BERT4RecConfig(items=0),
        lambda: BERT4RecConfig(items=3, mask_share=0.0),
        lambda: BERT4RecConfig(items=3, heads=0),
        lambda: SASRecConfig(items=3, loss="hinge"),  # type: ignore[arg-type]
        lambda: SASRecConfig(items=3, dropout=1.0),
        lambda: GRU4RecConfig(items=3, width=0),
    ],
)
def test_shapes_that_make_no_sense_are_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()
