from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intune.errors import ConfigError
from intune.workloads.clicks.dlrm import DLRM, DLRMConfig
from intune.workloads.training.optim import Adagrad, ClippedAdamW, decay_linearly, make_optimizer, sum_rows

CONFIG = DLRMConfig(table_sizes=(7, 3, 11), embedding_dim=4, dense_features=5, bottom=(6, 4), top=(8, 1))
DENSE_CONFIG = DLRMConfig(**{**CONFIG.__dict__, "sparse_gradients": False})


def batches(count: int = 6, rows: int = 30) -> list[dict[str, torch.Tensor]]:
    rng = np.random.default_rng(4)
    return [
        {
            "dense": torch.from_numpy(rng.normal(size=(rows, 5)).astype(np.float32)),
            "sparse": torch.from_numpy(rng.integers(0, CONFIG.table_sizes, size=(rows, 3))),
            "label": torch.from_numpy(rng.integers(0, 2, size=rows).astype(np.float32)),
        }
        for _ in range(count)
    ]


def train(model: DLRM, optimizer: torch.optim.Optimizer, data: list[dict[str, torch.Tensor]]) -> None:
    for batch in data:
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()


def assert_same_parameters(left: DLRM, right: DLRM) -> None:
    for (name, ours), (_, theirs) in zip(left.named_parameters(), right.named_parameters(), strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=2e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


@settings(max_examples=60)
@given(
    index=st.lists(st.integers(0, 9), max_size=40),
    width=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_sums_of_repeated_rows_equal_numpys(index: list[int], width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(len(index), width))
    scratch = torch.from_numpy(rng.integers(-(2**62), 2**62, size=10))
    rows, sums = sum_rows(torch.tensor(index, dtype=torch.int64), torch.from_numpy(values), scratch)
    assert sorted(rows.tolist()) == sorted(set(index))
    expected = np.zeros((10, width))
    np.add.at(expected, index, values)
    np.testing.assert_array_equal(sums.numpy(), expected[rows.numpy()])


def test_plain_adagrad_equals_torchs_with_dense_and_with_sparse_gradients() -> None:
    reference = DLRM(DENSE_CONFIG, seed=2)
    train(reference, torch.optim.Adagrad(reference.parameters(), lr=0.05), batches())
    for config in (CONFIG, DENSE_CONFIG):
        model = DLRM(config, seed=2)
        train(model, Adagrad(model.parameters(), lr=0.05), batches())
        assert_same_parameters(model, reference)


def test_rowwise_adagrad_equals_its_definition() -> None:
    model = DLRM(CONFIG, seed=2)
    optimizer = Adagrad(model.parameters(), lr=0.05, rowwise=True)
    table = model.embeddings.weight.detach().double().numpy().copy()
    total = np.zeros(len(table))
    for batch in batches():
        optimizer.zero_grad()
        model.loss(batch).backward()
        assert model.embeddings.weight.grad is not None
        gradient = model.embeddings.weight.grad.to_dense().double().numpy()
        total += (gradient**2).mean(axis=1)
        touched = (gradient != 0).any(axis=1)
        table[touched] -= 0.05 * gradient[touched] / (np.sqrt(total[touched])[:, None] + 1e-10)
        optimizer.step()
    np.testing.assert_allclose(model.embeddings.weight.detach().numpy(), table, rtol=1e-4, atol=1e-6)
    assert optimizer.state[model.embeddings.weight]["sum"].shape == (sum(CONFIG.table_sizes), 1)


def test_rows_without_a_gradient_are_not_touched() -> None:
    model = DLRM(CONFIG, seed=2)
    before = model.embeddings.weight.detach().clone()
    (batch,) = batches(1, rows=2)
    train(model, Adagrad(model.parameters(), lr=0.05, rowwise=True), [batch])
    used = (batch["sparse"] + model.embeddings.starts).unique()
    unused = np.setdiff1d(np.arange(sum(CONFIG.table_sizes)), used.numpy())
    assert torch.equal(model.embeddings.weight[unused], before[unused])
    assert (model.embeddings.weight[used] != before[used]).any(dim=1).all()


def test_a_coalesced_gradient_gives_the_same_step() -> None:
    steps = []
    for coalesce in (False, True):
        model = DLRM(CONFIG, seed=2)
        optimizer = Adagrad(model.parameters(), lr=0.05)
        for batch in batches():
            optimizer.zero_grad()
            model.loss(batch).backward()
            if coalesce:
                assert model.embeddings.weight.grad is not None
                model.embeddings.weight.grad = model.embeddings.weight.grad.coalesce()
            optimizer.step()
        steps.append(model)
    assert_same_parameters(*steps)


@pytest.mark.parametrize("rowwise", [False, True])
def test_state_saved_and_loaded_continues_with_the_same_bits(rowwise: bool) -> None:
    data = batches()
    whole = DLRM(CONFIG, seed=2)
    train(whole, Adagrad(whole.parameters(), lr=0.05, rowwise=rowwise), data)

    first = DLRM(CONFIG, seed=2)
    optimizer = Adagrad(first.parameters(), lr=0.05, rowwise=rowwise)
    train(first, optimizer, data[:3])
    second = DLRM(CONFIG, seed=9)
    second.load_state_dict(first.state_dict())
    resumed = Adagrad(second.parameters(), lr=1.0, rowwise=not rowwise)
    resumed.load_state_dict(optimizer.state_dict())
    train(second, resumed, data[3:])
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_copy_goes_on_with_the_same_bits(copied: Callable[[Any], Any]) -> None:
    model = DLRM(CONFIG, seed=1)
    optimizer = Adagrad(model.parameters(), lr=0.1, rowwise=True)
    train(model, optimizer, batches()[:3])
    for parameter in model.parameters():
        parameter.grad = None
    again, its_optimizer = copied((model, optimizer))
    train(model, optimizer, batches()[3:])
    train(again, its_optimizer, batches()[3:])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_torchs_own_optimizers_take_the_sparse_gradients(name: str) -> None:
    models = []
    for config in (CONFIG, DENSE_CONFIG):
        model = DLRM(config, seed=2)
        train(model, getattr(torch.optim, name)(model.parameters(), lr=0.05), batches())
        models.append(model)
    assert_same_parameters(*models)


def test_sparse_adam_takes_the_sparse_gradients() -> None:
    model = DLRM(CONFIG, seed=2)
    before = model.embeddings.weight.detach().clone()
    train(model, torch.optim.SparseAdam([model.embeddings.weight]), batches(1))
    assert not torch.equal(model.embeddings.weight, before)


def test_a_closure_is_evaluated_with_gradients() -> None:
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = Adagrad([weight], lr=0.5)

    def closure() -> float:
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert weight.item() == pytest.approx(1.5)  # the first step of Adagrad has length lr


@pytest.mark.parametrize(("argument", "value"), [("lr", 0.0), ("lr", float("nan")), ("eps", -1.0)])
def test_arguments_that_make_no_sense_are_refused(argument: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"`{argument}`"):
        Adagrad([torch.nn.Parameter(torch.zeros(1))], **{argument: value})


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise-adagrad"])
def test_tables_and_others_get_their_own_rates(name: str) -> None:
    table, other = torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer(
        name, tables=[table], others=[other], learning_rate=0.1, table_learning_rate=0.4, table_eps=0.0
    )
    index = torch.tensor([[1]])
    table.grad = torch.sparse_coo_tensor(index, torch.ones(1, 2), (3, 2), check_invariants=True)
    other.grad = torch.ones(2)
    optimizer.step()
    # A gradient of ones: the first step of each of the three has the length of its learning rate.
    assert torch.allclose(table, torch.tensor([[1.0, 1.0], [0.6, 0.6], [1.0, 1.0]]))
    assert torch.allclose(other, torch.full((2,), 0.9))


def test_a_large_epsilon_shortens_the_tables_steps_only() -> None:
    table, other = torch.nn.Parameter(torch.ones(1, 2)), torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer(
        "rowwise-adagrad", tables=[table], others=[other], learning_rate=0.1, table_eps=3.0
    )
    table.grad = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1, 2), (1, 2), check_invariants=True)
    other.grad = torch.ones(2)
    optimizer.step()
    assert torch.allclose(table, torch.full((1, 2), 1 - 0.1 / 4))
    assert torch.allclose(other, torch.full((2,), 0.9))


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="`optimizer`='lion' is unknown; use 'sgd'"):
        make_optimizer("lion", tables=[], others=[], learning_rate=0.1)


def test_rates_fall_in_a_straight_line_to_zero() -> None:
    table, other = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [table], "lr": 4.0}, {"params": [other], "lr": 1.0}])
    decay_linearly(optimizer, 4)
    seen = []
    for _ in range(6):
        before = table.item(), other.item()
        table.grad = other.grad = torch.ones(1)
        optimizer.step()
        seen.append((before[0] - table.item(), before[1] - other.item()))
    assert seen == [(4.0, 1.0), (3.0, 0.75), (2.0, 0.5), (1.0, 0.25), (0.0, 0.0), (0.0, 0.0)]


def test_falling_rates_go_on_from_a_saved_state() -> None:
    def make() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        table = torch.nn.Parameter(torch.ones(3, 2))
        optimizer = make_optimizer("rowwise-adagrad", tables=[table], others=[], learning_rate=0.5)
        decay_linearly(optimizer, 5)
        return table, optimizer

    def train(table: torch.nn.Parameter, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            table.grad = torch.full((3, 2), 1.0 + step)
            optimizer.step()

    table, optimizer = make()
    train(table, optimizer, range(5))
    first, before = make()
    train(first, before, range(2))
    second, after = make()
    with torch.no_grad():
        second.copy_(first)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    train(second, after, range(2, 5))
    assert torch.equal(second, table)


def test_a_decay_needs_a_step() -> None:
    with pytest.raises(ConfigError, match="`steps`=0 must be a whole number, 1 or more"):
        decay_linearly(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0), 0)


def test_adam_is_torchs() -> None:
    table, other = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    optimizer = make_optimizer(
        "adam", tables=[table], others=[other], learning_rate=0.1, table_learning_rate=0.2
    )
    assert isinstance(optimizer, torch.optim.Adam)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.1]


def test_the_gradient_is_shortened_before_the_step() -> None:
    mine, theirs = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    clipped = ClippedAdamW([mine], lr=0.1, weight_decay=0.01, clip=1.0)
    plain = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.01)
    for length in (10.0, 0.5):
        gradient = torch.tensor([length, 0.0, 0.0])
        mine.grad, theirs.grad = gradient.clone(), gradient / max(1.0, length)
        clipped.step()
        plain.step()
    torch.testing.assert_close(mine, theirs)
