from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from intune.errors import ConfigError, SchemaError
from intune.workloads.clicks.dcnv2 import CrossLayer, DCNv2, DCNv2Config
from intune.workloads.clicks.model import Recipe
from intune.workloads.clicks.table_sizes import KAGGLE_SIZES, MLPERF_V2_SIZES

SIZES = (7, 3, 11)


def small(**changes: object) -> DCNv2Config:
    config = DCNv2Config(table_sizes=SIZES, embedding_dim=2, dense_features=3, cross_layers=2, deep=(6, 4))
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def small_batch(rows: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(1)
    dense = torch.from_numpy(rng.normal(size=(rows, 3)).astype(np.float32))
    return dense, torch.from_numpy(rng.integers(0, SIZES, size=(rows, len(SIZES))))


def test_a_cross_layer_worked_out_by_hand() -> None:
    layer = CrossLayer(2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        layer.bias.copy_(torch.tensor([0.5, -0.5]))
    # W x + b = (1·3 + 2·1 + 0.5, −1·1 − 0.5) = (5.5, −1.5); x₀ ⊙ that = (11, 6); + x = (14, 7).
    found = layer(torch.tensor([[2.0, -4.0]]), torch.tensor([[3.0, 1.0]]))
    assert found.tolist() == [[14.0, 7.0]]


def test_a_low_rank_cross_layer_worked_out_by_hand() -> None:
    layer = CrossLayer(2, 1)
    assert layer.down is not None
    with torch.no_grad():
        layer.down.copy_(torch.tensor([[1.0, 2.0]]))
        layer.weight.copy_(torch.tensor([[3.0], [-1.0]]))
        layer.bias.copy_(torch.tensor([1.0, 0.0]))
    # V x = 1·3 + 2·1 = 5; U(V x) + b = (16, −5); x₀ ⊙ that = (32, 20); + x = (35, 21).
    found = layer(torch.tensor([[2.0, -4.0]]), torch.tensor([[3.0, 1.0]]))
    assert found.tolist() == [[35.0, 21.0]]


def test_a_low_rank_layer_is_a_full_one_whose_matrix_is_the_product() -> None:
    low, full = CrossLayer(6, 2).double(), CrossLayer(6).double()
    low.initialise(np.random.default_rng(0))
    assert low.down is not None
    with torch.no_grad():
        low.bias.uniform_(generator=torch.Generator().manual_seed(0))
        full.weight.copy_(low.weight @ low.down)
        full.bias.copy_(low.bias)
    first, x = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(low(first, x), full(first, x))
    dense = first * (x @ full.weight.T + full.bias) + x
    torch.testing.assert_close(full(first, x), dense)


def by_hand(model: DCNv2, dense: np.ndarray, sparse: np.ndarray) -> np.ndarray:
    """Logits row by row from the paper's equations, in float64."""
    parameters = {name: value.detach().double().numpy() for name, value in model.named_parameters()}

    def run_mlp(name: str, x: np.ndarray, relu_last: bool) -> np.ndarray:
        weights = sorted(
            (key for key in parameters if key.startswith(f"{name}.") and key.endswith("weight")),
            key=lambda key: int(key.split(".")[1]),
        )
        for key in weights:
            x = parameters[key] @ x + parameters[key.replace("weight", "bias")]
            if relu_last or key != weights[-1]:
                x = np.maximum(x, 0)
        return x

    starts = np.concatenate([[0], np.cumsum(SIZES)])
    logits = []
    for inputs, ids in zip(dense.astype(np.float64), sparse, strict=True):
        embedded = [parameters["embeddings.weight"][starts[f] + i] for f, i in enumerate(ids)]
        first = np.concatenate([run_mlp("bottom", inputs, True), *embedded])
        x = first
        for layer in range(model.config.cross_layers):
            weight = parameters[f"cross.{layer}.weight"]
            if model.config.rank is not None:
                weight = weight @ parameters[f"cross.{layer}.down"]
            x = first * (weight @ x + parameters[f"cross.{layer}.bias"]) + x
        if model.config.structure == "parallel":
            out = np.concatenate([x, run_mlp("deep", first, True)])
        else:
            out = run_mlp("deep", x, True)
        logits.append(run_mlp("head", out, False)[0])
    return np.array(logits)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rank": 2},
        {"structure": "parallel"},
        {"structure": "parallel", "rank": 3, "bottom": (4, 5)},
        {"bottom": (4,)},
        {"deep": ()},
        {"cross_layers": 0},
    ],
)
def test_logits_equal_the_definition(changes: dict[str, object]) -> None:
    model = DCNv2(small(**changes), seed=5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("cross") and name.endswith("bias"):
                parameter.uniform_(generator=torch.Generator().manual_seed(2))
    dense, sparse = small_batch()
    found = model(dense, sparse).detach().numpy()
    np.testing.assert_allclose(found, by_hand(model, dense.numpy(), sparse.numpy()), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("changes", [{}, {"rank": 2, "bottom": (4,)}, {"structure": "parallel"}])
def test_gradients_match_finite_differences(changes: dict[str, object]) -> None:
    model = DCNv2(small(sparse_gradients=False, **changes), seed=5).double()
    dense, sparse = small_batch(rows=3)
    names, parameters = zip(*model.named_parameters(), strict=True)

    def loss(*values: torch.Tensor) -> torch.Tensor:
        named = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, named, (dense.double(), sparse))  # type: ignore[no-any-return]

    inputs = tuple(p.detach().clone().requires_grad_() for p in parameters)
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def test_l_layers_make_products_of_l_plus_one_features() -> None:
    """Scaling x₀ by t makes x_l a polynomial of degree l + 1 in t: its (l + 2)-th differences vanish, not the last."""
    layers = [CrossLayer(3).double() for _ in range(2)]
    for layer, rng in zip(layers, np.random.default_rng(0).spawn(2), strict=True):
        layer.initialise(rng)
    first = torch.tensor([[0.7, -1.2, 0.4]], dtype=torch.float64)
    values = []
    for scale in range(6):
        x = scaled = first * scale
        for layer in layers:
            x = layer(scaled, x)
        values.append(x.detach().numpy())
    assert np.abs(np.diff(np.stack(values), n=3, axis=0)).max() > 1e-3
    np.testing.assert_allclose(np.diff(np.stack(values), n=4, axis=0), 0, atol=1e-9)


def test_without_cross_layers_and_dense_inputs_it_is_an_mlp_over_the_embeddings() -> None:
    model = DCNv2(small(cross_layers=0, dense_features=0), seed=5)
    _, sparse = small_batch()
    flat = model.embeddings(sparse).flatten(1)
    expected = model.head(model.deep(flat)).squeeze(1)
    assert torch.equal(model.logits({"sparse": sparse}), expected)
    assert torch.equal(
        model.logits(dict(zip(model.embeddings.names, sparse.unbind(1), strict=True))), expected
    )


def test_parameter_counts() -> None:
    # 26 × 128 + 128 = 3,456 wide; a cross layer 2 · 512 · 3,456 + 3,456.
    mlperf = DCNv2(DCNv2Config.mlperf(), device="meta")
    bottom = 13 * 512 + 512 + 512 * 256 + 256 + 256 * 128 + 128
    cross = 3 * (2 * 512 * 3456 + 3456)
    top = 3456 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 512 + 512 + 512 * 256 + 256 + 256 + 1
    expected = bottom + cross + top + sum(MLPERF_V2_SIZES) * 128
    assert sum(parameter.numel() for parameter in mlperf.parameters()) == expected
    full = DCNv2(small(structure="parallel"), device="meta")
    # 3 + 3·2 = 9 wide; W and b twice; 9·6+6 + 6·4+4; (9 + 4) + 1.
    assert sum(p.numel() for p in full.others()) == 2 * (81 + 9) + 60 + 28 + 14


def test_presets_are_those_of_the_spec() -> None:
    mlperf = DCNv2Config.mlperf()
    assert (mlperf.embedding_dim, mlperf.bottom) == (128, (512, 256, 128))
    assert (mlperf.cross_layers, mlperf.rank, mlperf.structure) == (3, 512, "stacked")
    assert mlperf.deep == (1024, 1024, 512, 256)
    assert mlperf.recipe == Recipe(optimizer="adagrad", learning_rate=0.006, batch_size=16_384)
    assert max(mlperf.table_sizes) == 40_000_000
    demonstration = DCNv2Config.mlp(table_sizes=KAGGLE_SIZES)
    assert (demonstration.cross_layers, demonstration.deep, demonstration.embedding_dim) == (0, (128, 64), 16)
    assert demonstration.recipe.optimizer == "adam"
    assert (demonstration.recipe.learning_rate, demonstration.recipe.batch_size) == (0.01, 8192)


def test_cross_matrices_are_drawn_from_the_normal_distribution_that_is_said() -> None:
    for rank in (None, 40):
        layer = CrossLayer(200, rank)
        layer.initialise(np.random.default_rng(0))
        for matrix in (layer.down, layer.weight):
            if matrix is not None:
                scaled = matrix.detach().numpy().ravel() / np.sqrt(2 / sum(matrix.shape))
                assert stats.kstest(scaled, "norm").pvalue > 1e-3
        assert not layer.bias.any()


def test_a_seed_means_the_same_model_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (DCNv2(small(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.0.weight"], other["head.0.weight"])
    assert not torch.equal(first["cross.0.weight"], other["cross.0.weight"])


def test_others_are_all_parameters_but_the_tables() -> None:
    model = DCNv2(small())
    counted = sum(parameter.numel() for parameter in model.others()) + model.embeddings.weight.numel()
    assert counted == sum(parameter.numel() for parameter in model.parameters())
    assert all(parameter is not model.embeddings.weight for parameter in model.others())


def test_wrong_shapes_name_the_column() -> None:
    model = DCNv2(small())
    dense, sparse = small_batch()
    with pytest.raises(SchemaError, match=r"`dense` must have shape \(rows, 3\)"):
        model(dense[:, :2], sparse)
    with pytest.raises(SchemaError, match="`dense` has 4 rows, but `sparse` has 5"):
        model(dense[:4], sparse)
    assert model(dense[:0], sparse[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": 0}, "`rank` must be from 1 to the input's width, 9"),
        ({"rank": 10}, "`rank` must be from 1 to the input's width, 9.* but 10"),
        ({"embedding_dim": 0}, "`embedding_dim`=.* must be a whole number, 1 or more"),
        ({"embedding_dim": -3}, "`embedding_dim`=.* must be a whole number, 1 or more"),
        ({"cross_layers": -1}, "`cross_layers`"),
        ({"structure": "both"}, "`structure`='both'"),
        ({"structure": "parallel", "deep": ()}, "'parallel' needs cross layers and a `deep` part"),
        ({"structure": "parallel", "cross_layers": 0}, "'parallel' needs cross layers"),
        ({"deep": (4, 0)}, "widths of `deep`"),
        ({"bottom": (0,)}, "widths of `bottom`"),
        ({"bottom": (4,), "dense_features": 0}, "`bottom` needs dense inputs"),
        ({"dense_features": -1}, "`dense_features`"),
        ({"recipe": Recipe(optimizer="adam")}, "set `sparse_gradients` to False"),
    ],
)
def test_a_shape_that_makes_no_sense_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        small(**changes)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ConfigError, match="`schedule`='cosine' is unknown; use constant, linear"):
        Recipe(schedule="cosine")  # type: ignore[arg-type]


def test_an_exported_model_takes_any_number_of_rows() -> None:
    model = DCNv2(small()).eval()
    rows = torch.export.Dim("rows", min=2)
    exported = torch.export.export(model, small_batch(9), dynamic_shapes=({0: rows}, {0: rows})).module()
    torch.testing.assert_close(exported(*small_batch(5)), model(*small_batch(5)))
