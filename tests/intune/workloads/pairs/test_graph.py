"""Sparse products and propagation against dense linear algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from intune.errors import ConfigError, DataError
from intune.workloads.pairs.graph import SymmetricPattern, bipartite_edges, normalised_adjacency
from intune.workloads.pairs.lightgcn import LightGCN
from intune.workloads.pairs.matrix_factorisation import MatrixFactorisation

USERS, ITEMS = 4, 5
USER = np.array([0, 0, 1, 2, 2, 2, 3])
ITEM = np.array([1, 3, 3, 0, 1, 4, 2])


def pattern() -> SymmetricPattern:
    return SymmetricPattern(*bipartite_edges(USER, ITEM, USERS), USERS + ITEMS)


def adjacency() -> np.ndarray:
    """The graph, dense."""
    dense = np.zeros((USERS + ITEMS,) * 2)
    dense[USER, ITEM + USERS] = dense[ITEM + USERS, USER] = 1
    return dense


def doubles(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_entries_are_where_the_graph_has_edges() -> None:
    ones = torch.ones(len(pattern()), dtype=torch.float64)
    np.testing.assert_array_equal(pattern().dense(ones), adjacency())


def test_a_product_is_that_of_the_dense_matrix() -> None:
    values, x = doubles(14), doubles(9, 3, seed=1)
    torch.testing.assert_close(pattern().product(values, x), pattern().dense(values) @ x)


def test_the_mirror_transposes() -> None:
    values = doubles(14)
    torch.testing.assert_close(pattern().dense(values[pattern().mirror]), pattern().dense(values).t())
    assert torch.equal(pattern().mirrored(values), values[pattern().mirror])


def test_the_gradients_of_a_product_are_those_of_finite_differences() -> None:
    values, x = doubles(14).requires_grad_(), doubles(9, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(pattern().product, (values, x))


def test_a_symmetric_matrix_has_the_same_gradient_the_short_way() -> None:
    graph = pattern()
    values = doubles(14)
    values = values + values[graph.mirror]
    x = doubles(9, 3, seed=1)
    weights = doubles(9, 3, seed=2)
    gradients = []
    for symmetric in (False, True):
        leaf = x.clone().requires_grad_()
        (graph.product(values, leaf, symmetric=symmetric) * weights).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["of_row", "of_column"])
def test_what_an_end_has_reaches_its_entries_and_gradients_come_back(name: str, channels: int) -> None:
    graph = pattern()
    x = doubles(9, channels).requires_grad_()
    index = graph.row if name == "of_row" else graph.column
    torch.testing.assert_close(getattr(graph, name)(x), x[index])
    assert torch.autograd.gradcheck(getattr(graph, name), (x,))


@pytest.mark.parametrize("channels", [1, 3])
def test_rows_are_summed_and_mirrored_with_their_gradients(channels: int) -> None:
    graph = pattern()
    values = doubles(14, channels).requires_grad_()
    expected = torch.zeros(9, channels, dtype=torch.float64).index_add(0, graph.row, values)
    torch.testing.assert_close(graph.row_sums(values), expected)
    assert torch.autograd.gradcheck(graph.row_sums, (values,))
    assert torch.autograd.gradcheck(graph.mirrored, (values,))


def test_a_node_without_edges_gets_nothing() -> None:
    graph = SymmetricPattern(*bipartite_edges(np.array([0]), np.array([0]), 2), 4)
    product = graph.product(torch.ones(2), torch.ones(4, 2))
    np.testing.assert_array_equal(product, [[1, 1], [0, 0], [1, 1], [0, 0]])
    np.testing.assert_array_equal(graph.row_sums(torch.ones(2, 1)), [[1], [0], [1], [0]])


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([0, 1], [1, 5], "lies outside of a matrix of 3 rows"),
        ([0, 1, 0, 1], [1, 0, 1, 0], "is given twice"),
        ([0], [1], "lacks its mirror image"),
    ],
)
def test_patterns_that_make_no_sense_are_refused(rows: list[int], columns: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        SymmetricPattern(np.array(rows), np.array(columns), 3)


def test_the_adjacency_is_normalised_by_both_ends() -> None:
    graph, values = normalised_adjacency(USER, ITEM, users=USERS, items=ITEMS)
    dense = adjacency()
    root = np.diag(dense.sum(1) ** -0.5)
    np.testing.assert_allclose(graph.dense(values), root @ dense @ root, rtol=1e-6)
    assert np.abs(np.linalg.eigvalsh(root @ dense @ root)).max() <= 1 + 1e-12


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_lightgcn_is_the_mean_of_powers_of_the_normalised_adjacency(depth: int) -> None:
    model = LightGCN(USER, ITEM, users=USERS, items=ITEMS, dim=6, depth=depth, seed=3)
    dense = adjacency()
    root = np.diag(dense.sum(1) ** -0.5)
    step = root @ dense @ root
    start = model.weight.detach().double().numpy()
    layers = [np.linalg.matrix_power(step, k) @ start for k in range(depth + 1)]
    np.testing.assert_allclose(model().detach(), np.mean(layers, axis=0), rtol=1e-4, atol=1e-6)
    for layer, expected in zip(model.layers(), layers, strict=True):
        np.testing.assert_allclose(layer.detach(), expected, rtol=1e-4, atol=1e-6)


def test_the_gradient_of_lightgcn_is_that_of_finite_differences() -> None:
    model = LightGCN(USER, ITEM, users=USERS, items=ITEMS, dim=2, depth=2, seed=3).double()
    weights = doubles(USERS + ITEMS, 2)

    def score(table: torch.Tensor) -> torch.Tensor:
        return (torch.func.functional_call(model, {"weight": table}) * weights).sum()

    assert torch.autograd.gradcheck(score, (model.weight.detach().clone().requires_grad_(),))


def test_scores_are_dot_products_of_users_and_items() -> None:
    model = LightGCN(USER, ITEM, users=USERS, items=ITEMS, dim=6, seed=3)
    final = model().detach()
    scores = model.scores(torch.tensor([2, 0])).detach()
    torch.testing.assert_close(scores, final[[2, 0]] @ final[USERS:].t())


def test_parameters_are_a_table_and_nothing_else() -> None:
    for model in (
        MatrixFactorisation(USERS, ITEMS, 8),
        LightGCN(USER, ITEM, users=USERS, items=ITEMS, dim=8),
    ):
        assert sum(parameter.numel() for parameter in model.parameters()) == (USERS + ITEMS) * 8
        assert set(model.state_dict()) == {"weight"}


def test_seeds_decide_the_initial_embeddings() -> None:
    tables = [MatrixFactorisation(50, 50, 64, seed=seed).weight.detach() for seed in (1, 1, 2)]
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])
    assert float(tables[0].std()) == pytest.approx(0.1, rel=0.05)


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="`dim`=0 must be a whole number, 1 or more"):
        MatrixFactorisation(2, 2, 0)
    with pytest.raises(ConfigError, match="`depth` must not be negative"):
        LightGCN(USER, ITEM, users=USERS, items=ITEMS, depth=-1)
