"""The sheaf Laplacian against the one built block by block from its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from intune.errors import ConfigError
from intune.workloads.pairs.graph import SymmetricPattern, bipartite_edges
from intune.workloads.pairs.sheaf import SheafLaplacian, SheafLayer, SheafNetwork

USERS, ITEMS, DIM = 3, 4, 6
USER = np.array([0, 0, 1, 2, 2, 2])
ITEM = np.array([1, 3, 3, 0, 1, 2])
NODES = USERS + ITEMS
STALKS = [1, 2, 3]


def doubles(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def laplacian(stalk: int) -> SheafLaplacian:
    graph = SymmetricPattern(*bipartite_edges(USER, ITEM, USERS), NODES)
    made = SheafLaplacian(graph, dim=DIM, stalk=stalk, generator=torch.Generator().manual_seed(5)).double()
    with torch.no_grad():
        made.maps.copy_(doubles(2 * DIM, stalk * stalk, seed=9))
    return made


def coboundary(made: SheafLaplacian, x: Tensor) -> np.ndarray:
    """δ: on each edge, what the first end says minus what the second says; the Laplacian is δᵀδ."""
    s = made.stalk
    weights = made.maps.detach().numpy()
    edges = list(zip(USER, ITEM + USERS, strict=True))
    delta = np.zeros((len(edges) * s, NODES * s))

    def restriction(v: int, u: int) -> np.ndarray:
        both = np.concatenate([x[v].numpy(), x[u].numpy()])
        return np.tanh(both @ weights).reshape(s, s)

    for row, (v, u) in enumerate(edges):
        delta[row * s : row * s + s, v * s : v * s + s] = restriction(v, u)
        delta[row * s : row * s + s, u * s : u * s + s] = -restriction(u, v)
    return delta


def normalised(made: SheafLaplacian, x: Tensor) -> np.ndarray:
    """C⁻¹ δᵀδ C⁻ᵀ, dense."""
    delta = coboundary(made, x)
    dense = delta.T @ delta
    inverse = np.zeros_like(dense)
    for node in range(NODES):
        block = slice(node * made.stalk, (node + 1) * made.stalk)
        inverse[block, block] = np.linalg.inv(np.linalg.cholesky(dense[block, block] + np.eye(made.stalk)))
    return inverse @ dense @ inverse.T


@pytest.mark.parametrize("stalk", STALKS)
def test_the_blocks_are_those_of_the_coboundary_squared(stalk: int) -> None:
    made, x = laplacian(stalk), doubles(NODES, DIM)
    delta = coboundary(made, x)
    expected = (delta.T @ delta).reshape(NODES, stalk, NODES, stalk)
    off, diagonal = (part.detach().numpy() for part in made.blocks(made.restrictions(x)))
    for node in range(NODES):
        np.testing.assert_allclose(diagonal[node], expected[node, :, node], atol=1e-12)
    for entry, (row, column) in enumerate(zip(made.pattern.row, made.pattern.column, strict=True)):
        np.testing.assert_allclose(off[entry], expected[row, :, column], atol=1e-12)
    assert np.count_nonzero(expected) == np.count_nonzero(off) + np.count_nonzero(diagonal)


@pytest.mark.parametrize("stalk", STALKS)
def test_applying_it_is_the_dense_product(stalk: int) -> None:
    made, x, y = laplacian(stalk), doubles(NODES, DIM), doubles(NODES, DIM, seed=2)
    expected = normalised(made, x) @ y.numpy().reshape(NODES * stalk, DIM // stalk)
    np.testing.assert_allclose(made(x, y).detach(), expected.reshape(NODES, DIM), atol=1e-10)


@pytest.mark.parametrize("stalk", STALKS)
@pytest.mark.parametrize("seed", range(3))
def test_it_is_symmetric_positive_semidefinite_and_below_two(stalk: int, seed: int) -> None:
    made, x = laplacian(stalk), doubles(NODES, DIM, seed=seed)
    columns = [
        made(x, unit.reshape(NODES, DIM)).detach().reshape(NODES * stalk, -1)[:, 0]
        for unit in (
            torch.eye(NODES * stalk, dtype=torch.float64)[k][:, None].expand(-1, DIM // stalk).contiguous()
            for k in range(NODES * stalk)
        )
    ]
    dense = torch.stack(columns, dim=1).numpy()
    np.testing.assert_allclose(dense, dense.T, atol=1e-12)
    eigenvalues = np.linalg.eigvalsh(dense)
    assert eigenvalues.min() > -1e-12
    assert eigenvalues.max() < 2


def test_scalar_stalks_are_the_formula_of_the_public_code() -> None:
    made, x, y = laplacian(1), doubles(NODES, DIM), doubles(NODES, DIM, seed=2)
    m = {
        (int(v), int(u)): float(torch.tanh(torch.cat([x[v], x[u]]) @ made.maps.detach()[:, 0]))
        for v, u in zip(made.pattern.row, made.pattern.column, strict=True)
    }
    dense = np.zeros((NODES, NODES))
    for (v, u), value in m.items():
        dense[v, v] += value**2
        dense[v, u] = -value * m[u, v]
    root = (np.diag(dense) + 1) ** -0.5
    expected = (root[:, None] * dense * root[None]) @ y.numpy()
    np.testing.assert_allclose(made(x, y).detach(), expected, atol=1e-12)


def test_a_layer_steps_against_the_laplacian_of_a_linear_map() -> None:
    made = laplacian(1)
    layer = SheafLayer(made.pattern, dim=DIM, stalk=1, step=0.5, generator=torch.Generator()).double()
    x = doubles(NODES, DIM)
    y = x.numpy() @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    expected = x.numpy() - 0.5 * normalised(layer.laplacian, x) @ y
    np.testing.assert_allclose(layer(x).detach(), expected, atol=1e-12)


def test_without_the_linear_map_a_layer_steps_against_the_laplacian_alone() -> None:
    made = laplacian(2)
    layer = SheafLayer(
        made.pattern, dim=DIM, stalk=2, step=0.5, linear=False, generator=torch.Generator()
    ).double()
    x = doubles(NODES, DIM)
    dense = normalised(layer.laplacian, x)
    expected = x.numpy() - 0.5 * (dense @ x.numpy().reshape(NODES * 2, -1)).reshape(NODES, DIM)
    np.testing.assert_allclose(layer(x).detach(), expected, atol=1e-12)
    assert [name for name, _ in layer.named_parameters()] == ["laplacian.maps"]


def test_an_offset_with_maps_of_zero_is_the_graphs_own_laplacian() -> None:
    graph = SymmetricPattern(*bipartite_edges(USER, ITEM, USERS), NODES)
    made = SheafLaplacian(graph, dim=DIM, stalk=2, offset=20.0, generator=torch.Generator()).double()
    with torch.no_grad():
        made.maps.zero_()
    x = doubles(NODES, DIM)
    adjacency = graph.dense(torch.ones(len(graph), dtype=torch.float64)).numpy()
    degree = adjacency.sum(1)
    root = np.diag((degree + 1) ** -0.5)
    expected = root @ (np.diag(degree) - adjacency) @ root @ x.numpy()
    np.testing.assert_allclose(made(x, x).detach(), expected, atol=1e-9)


@pytest.mark.parametrize("stalk", STALKS)
def test_gradients_are_those_of_finite_differences(stalk: int) -> None:
    model = SheafNetwork(USER, ITEM, users=USERS, items=ITEMS, dim=DIM, depth=2, stalk=stalk, seed=4).double()
    names = [name for name, _ in model.named_parameters()]
    weights = doubles(NODES, model.width)

    def score(*parameters: Tensor) -> Tensor:
        made = torch.func.functional_call(model, dict(zip(names, parameters, strict=True)))
        return (made * weights).sum()

    leaves = tuple(p.detach().clone().requires_grad_() for p in model.parameters())
    assert torch.autograd.gradcheck(score, leaves, fast_mode=True)


@pytest.mark.parametrize("stalk", STALKS)
def test_under_autocast_it_computes_as_without(stalk: int) -> None:
    made = []
    for enabled in (False, True):
        model = SheafNetwork(USER, ITEM, users=USERS, items=ITEMS, dim=DIM, depth=2, stalk=stalk)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            final = model()
        final.square().sum().backward()
        made.append((final, *(parameter.grad for parameter in model.parameters())))
    assert all(torch.equal(under, without) for without, under in zip(*made, strict=True))


@pytest.mark.parametrize("stalk", STALKS)
def test_parameters_are_as_many_as_the_docstring_says(stalk: int) -> None:
    model = SheafNetwork(USER, ITEM, users=USERS, items=ITEMS, dim=DIM, depth=3, stalk=stalk)
    expected = NODES * DIM + 3 * (DIM**2 + DIM + 2 * DIM * stalk**2)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_the_final_embedding_is_all_layers_side_by_side() -> None:
    model = SheafNetwork(USER, ITEM, users=USERS, items=ITEMS, dim=DIM, depth=2)
    final = model().detach()
    assert final.shape == (NODES, model.width) == (NODES, 3 * DIM)
    assert torch.equal(final[:, :DIM], model.weight.detach())
    assert torch.equal(final, torch.cat(model.layers(), dim=1).detach())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stalk": 4}, "`stalk` must divide `dim`=6, but 4 was found"),
        ({"stalk": 0}, "`stalk` must divide"),
        ({"depth": 0}, "`depth`=.* must be a whole number, 1 or more"),
        ({"step": 0.0}, "`step` must be above 0"),
        ({"offset": float("nan")}, "`offset` must be a finite number"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SheafNetwork(USER, ITEM, users=USERS, items=ITEMS, dim=DIM, **options)  # type: ignore[arg-type]
