from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from intune.errors import ConfigError, DataError, SchemaError
from intune.pipelines.schema import Ragged
from intune.workloads.clicks.dlrm import DLRM, DLRMConfig, PairwiseDots, pair_positions
from intune.workloads.clicks.model import Recipe
from intune.workloads.clicks.unified_embedding import UnifiedConfig

SIZES = (7, 3, 11, 50)


def small(**changes: object) -> DLRMConfig:
    config = DLRMConfig(table_sizes=SIZES, embedding_dim=4, dense_features=5, bottom=(6, 4), top=(8, 1))
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def small_batch(rows: int = 9, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    dense = torch.from_numpy(rng.normal(size=(rows, 5)).astype(np.float32))
    return dense, torch.from_numpy(rng.integers(0, SIZES, size=(rows, len(SIZES))))


def by_hand(model: DLRM, dense: np.ndarray, bags: list[list[list[int]]]) -> np.ndarray:
    """Logits row by row from the definition, in float64; ``bags[feature][row]`` is a list of ids."""
    parameters = {name: value.detach().double().numpy() for name, value in model.named_parameters()}

    def run_mlp(name: str, x: np.ndarray, relu_last: bool) -> np.ndarray:
        weights = sorted(
            (key for key in parameters if key.startswith(name) and key.endswith("weight")),
            key=lambda key: int(key.split(".")[1]),
        )
        for key in weights:
            x = parameters[key] @ x + parameters[key.replace("weight", "bias")]
            if relu_last or key != weights[-1]:
                x = np.maximum(x, 0)
        return x

    starts = np.concatenate([[0], np.cumsum(model.config.table_sizes)])
    table = parameters["embeddings.weight"]
    logits = []
    for row, inputs in enumerate(dense.astype(np.float64)):
        vectors = [run_mlp("bottom", inputs, True)]
        for feature, rows in enumerate(bags):
            pooled = np.zeros(model.config.embedding_dim)
            for identifier in rows[row]:
                pooled += table[starts[feature] + identifier]
            vectors.append(pooled)
        dots = [vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i)]
        logits.append(run_mlp("top", np.concatenate([vectors[0], dots]), False)[0])
    return np.array(logits)


def ragged(rows: list[list[int]]) -> Ragged:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    values = np.array(list(itertools.chain.from_iterable(rows)), dtype=np.int64)
    return Ragged(torch.from_numpy(values), torch.from_numpy(offsets.astype(np.int64)))


def random_bags(rows: int, seed: int = 3) -> list[list[list[int]]]:
    rng = np.random.default_rng(seed)
    return [[rng.integers(0, size, size=rng.integers(0, 4)).tolist() for _ in range(rows)] for size in SIZES]


def test_logits_equal_the_definition_for_single_ids() -> None:
    model = DLRM(small(), seed=5)
    dense, sparse = small_batch()
    bags = [[[int(identifier)] for identifier in column] for column in sparse.T]
    expected = by_hand(model, dense.numpy(), bags)
    np.testing.assert_allclose(model(dense, sparse).detach().numpy(), expected, rtol=2e-5, atol=2e-6)


def test_logits_equal_the_definition_for_lists_of_ids_and_empty_lists() -> None:
    model = DLRM(small(), seed=5)
    dense, _ = small_batch()
    bags = random_bags(9)
    assert any(not row for rows in bags for row in rows)
    found = model(dense, [ragged(rows) for rows in bags]).detach().numpy()
    np.testing.assert_allclose(found, by_hand(model, dense.numpy(), bags), rtol=2e-5, atol=2e-6)


def test_plain_and_list_columns_can_be_mixed() -> None:
    model = DLRM(small(), seed=5)
    dense, sparse = small_batch()
    bags = random_bags(9)
    bags[1] = [[int(identifier)] for identifier in sparse[:, 1]]
    columns = [ragged(rows) for rows in bags]
    columns[1] = sparse[:, 1]  # type: ignore[call-overload]
    expected = by_hand(model, dense.numpy(), bags)
    np.testing.assert_allclose(model(dense, columns).detach().numpy(), expected, rtol=2e-5, atol=2e-6)


def test_one_column_per_feature_gives_the_same_bits_as_one_matrix() -> None:
    model = DLRM(small(), seed=5)
    dense, sparse = small_batch()
    assert torch.equal(model(dense, sparse), model(dense, list(sparse.unbind(1))))
    bags = [ragged([[int(identifier)] for identifier in column]) for column in sparse.T]
    assert torch.equal(model(dense, sparse), model(dense, bags))


def test_a_bag_is_the_sum_of_its_ids() -> None:
    model = DLRM(small(), seed=5)
    _, first = small_batch(seed=1)
    _, second = small_batch(seed=2)
    bags = [
        ragged([[int(a), int(b)] for a, b in zip(left, right, strict=True)])
        for left, right in zip(first.T, second.T, strict=True)
    ]
    pooled = model.embeddings(bags)
    torch.testing.assert_close(pooled, model.embeddings(first) + model.embeddings(second))


def test_gradients_match_finite_differences() -> None:
    model = DLRM(small(sparse_gradients=False), seed=5).double()
    dense, sparse = small_batch(rows=4)
    names, parameters = zip(*model.named_parameters(), strict=True)

    def loss(*values: torch.Tensor) -> torch.Tensor:
        named = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, named, (dense.double(), sparse))  # type: ignore[no-any-return]

    inputs = tuple(p.detach().clone().requires_grad_() for p in parameters)
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def test_gradients_of_bags_match_finite_differences() -> None:
    model = DLRM(small(sparse_gradients=False), seed=5).double()
    dense, _ = small_batch(rows=4)
    bags = [ragged(rows) for rows in random_bags(4)]

    def loss(weight: torch.Tensor) -> torch.Tensor:
        named = {"embeddings.weight": weight}
        return torch.func.functional_call(model, named, (dense.double(), bags))  # type: ignore[no-any-return]

    weight = model.embeddings.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (weight,), fast_mode=True)


def test_dot_products_agree_with_autograd() -> None:
    pairs, mirror = pair_positions(6)
    vectors = torch.randn(3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vectors.requires_grad_()
    found = PairwiseDots.apply(vectors, pairs, mirror)  # type: ignore[no-untyped-call]
    row, column = torch.tril_indices(6, 6, offset=-1)
    expected = (vectors @ vectors.mT)[:, row, column]
    torch.testing.assert_close(found, expected)
    weight = torch.arange(15.0, dtype=torch.float64)
    (ours,) = torch.autograd.grad((found * weight).sum(), vectors)
    (theirs,) = torch.autograd.grad((expected * weight).sum(), vectors)
    torch.testing.assert_close(ours, theirs)


def test_gradients_under_autocast_are_nearly_those_of_full_precision() -> None:
    model = DLRM(small(sparse_gradients=False))
    dense, sparse = small_batch()
    model(dense, sparse).sum().backward()
    expected = {name: value.grad for name, value in model.named_parameters()}
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        total = model(dense, sparse).float().sum()
    total.backward()
    for name, value in model.named_parameters():
        assert value.grad is not None
        torch.testing.assert_close(value.grad, expected[name], rtol=0.05, atol=0.1)


@pytest.mark.parametrize("unified", [None, UnifiedConfig(rows=30, chunk_dim=2, chunks=2)])
def test_an_exported_model_takes_any_number_of_rows(unified: UnifiedConfig | None) -> None:
    model = DLRM(small(unified=unified)).eval()
    rows = torch.export.Dim("rows", min=2)
    exported = torch.export.export(model, small_batch(9), dynamic_shapes=({0: rows}, {0: rows})).module()
    torch.testing.assert_close(exported(*small_batch(5)), model(*small_batch(5)))


@pytest.mark.parametrize("lists", [False, True])
def test_sparse_gradients_equal_dense_ones(lists: bool) -> None:
    dense, sparse = small_batch(rows=40)
    ids = [ragged(rows) for rows in random_bags(40)] if lists else sparse
    label = (sparse[:, 0] > 3).float()
    gradients = []
    for choice in (False, True):
        model = DLRM(small(sparse_gradients=choice), seed=5)
        model.loss({"dense": dense, "sparse": ids, "label": label}).backward()
        gradient = model.embeddings.weight.grad
        assert gradient is not None
        assert gradient.is_sparse is choice
        gradients.append(gradient.to_dense() if choice else gradient)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_loss_is_the_mean_binary_cross_entropy() -> None:
    model = DLRM(small(), seed=5)
    dense, sparse = small_batch()
    label = torch.tensor([0.0, 1.0, 1.0] * 3)
    chance = 1 / (1 + np.exp(-model(dense, sparse).detach().numpy().astype(np.float64)))
    expected = -np.mean(np.where(label.numpy() == 1, np.log(chance), np.log(1 - chance)))
    found = model.loss({"dense": dense, "sparse": sparse, "label": label})
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_initial_weights_and_biases_are_drawn_from_the_normal_distributions_of_the_spec() -> None:
    config = DLRMConfig(table_sizes=(10,) * 26)
    model = DLRM(config, seed=11)
    layers = [layer for layer in (*model.bottom, *model.top) if isinstance(layer, torch.nn.Linear)]
    assert len(layers) == 7
    for layer in layers:
        outputs, inputs = layer.weight.shape
        scaled = layer.weight.detach().numpy().ravel() / np.sqrt(2 / (outputs + inputs))
        assert stats.kstest(scaled, "norm").pvalue > 1e-3, (outputs, inputs)
    biases = np.concatenate([layer.bias.detach().numpy() * np.sqrt(len(layer.bias)) for layer in layers])
    assert stats.kstest(biases, "norm").pvalue > 1e-3


def test_each_table_is_drawn_from_its_own_uniform_distribution() -> None:
    model = DLRM(DLRMConfig(table_sizes=(100, 1000, 40_000)), seed=11)
    for feature, size in enumerate((100, 1000, 40_000)):
        table = model.embeddings.table(feature).numpy()
        assert table.shape == (size, 16)
        bound = size**-0.5
        assert np.abs(table).max() <= bound
        assert stats.kstest(table.ravel(), "uniform", args=(-bound, 2 * bound)).pvalue > 1e-3, size


def test_a_seed_means_the_same_model_and_another_seed_another() -> None:
    first, again, other = (DLRM(small(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_building_a_model_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    DLRM(small(), seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_presets_are_those_of_the_spec() -> None:
    kaggle, terabyte, mlperf = DLRMConfig.kaggle(), DLRMConfig.terabyte(), DLRMConfig.mlperf()
    assert (kaggle.embedding_dim, kaggle.bottom, kaggle.top) == (16, (512, 256, 64, 16), (512, 256, 1))
    assert kaggle.recipe == Recipe(optimizer="sgd", learning_rate=0.1, batch_size=128)
    assert kaggle.top_input == 367
    assert sum(kaggle.table_sizes) == 33_762_577
    assert (terabyte.embedding_dim, terabyte.bottom, terabyte.top) == (64, (512, 256, 64), (512, 512, 256, 1))
    assert terabyte.recipe == Recipe(optimizer="sgd", learning_rate=0.1, batch_size=2048)
    assert terabyte.top_input == 415
    assert max(terabyte.table_sizes) == 10_000_000
    assert (mlperf.embedding_dim, mlperf.bottom) == (128, (512, 256, 128))
    assert mlperf.top == (1024, 1024, 512, 256, 1)
    assert mlperf.recipe.learning_rate == 1.0
    assert mlperf.top_input == 479
    assert all(config.dense_features == 13 for config in (kaggle, terabyte, mlperf))


@pytest.mark.parametrize(
    ("config", "mlps"),
    [
        # 13·512+512 + 512·256+256 + 256·64+64 + 64·16+16, and 367·512+512 + 512·256+256 + 256+1
        (DLRMConfig.kaggle(), 155_984 + 320_001),
        (DLRMConfig.terabyte(), 154_944 + 607_233),
        (DLRMConfig.mlperf(), 171_392 + 2_197_505),
    ],
)
def test_parameter_counts_of_the_presets(config: DLRMConfig, mlps: int) -> None:
    model = DLRM(config, device="meta")
    expected = mlps + sum(config.table_sizes) * config.embedding_dim
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_a_checkpoint_holds_parameters_only() -> None:
    model = DLRM(small())
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize(("found", "words"), [(11, "id 11"), (-1, "negative id -1")])
def test_an_id_outside_its_table_names_the_feature(lists: bool, found: int, words: str) -> None:
    model = DLRM(small(feature_names=("user", "day", "shop", "item")))
    dense, sparse = small_batch()
    sparse[4, 2] = found
    ids = [ragged([[int(i)] for i in column]) for column in sparse.T] if lists else sparse
    with pytest.raises(DataError, match=f"feature `shop` holds .*{words}"):
        model(dense, ids)


def test_the_last_id_of_a_table_is_accepted_and_unchecked_ids_are_not_compared() -> None:
    dense, sparse = small_batch()
    sparse[:] = torch.tensor(SIZES) - 1
    DLRM(small())(dense, sparse)
    sparse[0, 0] = SIZES[0]  # lands in the next feature's rows
    DLRM(small(check_ids=False))(dense, sparse)


def test_wrong_shapes_and_types_name_the_column() -> None:
    model = DLRM(small())
    dense, sparse = small_batch()
    with pytest.raises(SchemaError, match=r"`dense` must have shape \(rows, 5\)"):
        model(dense[:, :4], sparse)
    with pytest.raises(SchemaError, match=r"`sparse` must have shape \(rows, 4\)"):
        model(dense, sparse[:, :3])
    with pytest.raises(SchemaError, match="column for each of the 4 features, but 3"):
        model(dense, [ragged(rows) for rows in random_bags(9)[:3]])
    with pytest.raises(SchemaError, match="`sparse` must be a tensor of int64"):
        model(dense, sparse.float())
    with pytest.raises(SchemaError, match="`dense` has 8 rows, but `sparse` has 9"):
        model(dense[:8], sparse)
    columns = [ragged(rows) for rows in random_bags(9)]
    columns[2] = ragged([[1]] * 8)
    with pytest.raises(SchemaError, match="column `C3` has 8 rows"):
        model(dense, columns)
    columns[2] = Ragged(columns[2].values.float(), columns[2].offsets)
    with pytest.raises(SchemaError, match="column `C3` must be a tensor of int64"):
        model(dense, columns)


def test_a_batch_without_rows_has_no_logits() -> None:
    model = DLRM(small())
    dense, sparse = small_batch()
    assert model(dense[:0], sparse[:0]).shape == (0,)
    assert model(dense[:0], [ragged([])] * 4).shape == (0,)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"table_sizes": ()}, "`table_sizes`"),
        ({"table_sizes": (3, 0)}, "`table_sizes`"),
        ({"dense_features": 0}, "`dense_features`"),
        ({"bottom": (6, 5)}, "last width of `bottom`"),
        ({"bottom": ()}, "`bottom`"),
        ({"top": (8, 2)}, "last width of `top`"),
        ({"top": (0, 1)}, "`top`"),
        ({"feature_names": ("a",)}, "`feature_names`"),
    ],
)
def test_a_shape_that_makes_no_sense_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        small(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"table_learning_rate": 0.0},
        {"table_eps": -1.0},
        {"batch_size": 0},
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        Recipe(**changes)  # type: ignore[arg-type]


def test_a_batch_has_its_ids_in_one_matrix_or_in_a_column_for_each_feature() -> None:
    model = DLRM(small(feature_names=("user", "day", "shop", "item")), seed=5)
    dense, sparse = small_batch()
    expected = model(dense, sparse)
    columns = dict(zip(("user", "day", "shop", "item"), sparse.unbind(1), strict=True))
    assert torch.equal(model.logits({"dense": dense, "sparse": sparse}), expected)
    assert torch.equal(model.logits({"dense": dense, **columns}), expected)
    del columns["day"]
    with pytest.raises(SchemaError, match="has no day; it has dense, user, shop, item"):
        model.logits({"dense": dense, **columns})
