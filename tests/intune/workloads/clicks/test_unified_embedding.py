from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from intune.errors import ConfigError, SchemaError
from intune.pipelines.schema import Ragged
from intune.workloads.clicks.dcnv2 import DCNv2, DCNv2Config
from intune.workloads.clicks.dlrm import DLRM, DLRMConfig
from intune.workloads.clicks.embedding import StackedEmbedding
from intune.workloads.clicks.unified_embedding import UnifiedConfig, UnifiedEmbedding, mix, remainder, signed

NAMES = ("user", "movie", "zip")
WORD = (1 << 64) - 1


def make(config: UnifiedConfig, names: tuple[str, ...] = NAMES) -> UnifiedEmbedding:
    embedding = UnifiedEmbedding(names, config)
    embedding.initialise(np.random.default_rng(5))
    return embedding


def ragged(rows: list[list[int]]) -> Ragged:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    values = np.array(list(itertools.chain.from_iterable(rows)), dtype=np.int64)
    return Ragged(torch.from_numpy(values), torch.from_numpy(offsets))


def mix_by_hand(word: int) -> int:
    """splitmix64's finaliser in Python's unbounded integers."""
    word &= WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & WORD
    return word ^ (word >> 31)


def row_by_hand(name: str, chunk: int, number: int, identifier: int, config: UnifiedConfig) -> int:
    """The definition: hash(id, salt = (feature, chunk)) mod B, in table (running chunk number mod tables)."""
    key = mix_by_hand(config.seed * 0x9E3779B97F4A7C15)
    for byte in f"{name}/{chunk}".encode():
        key = mix_by_hand(key + byte + 1)
    word = mix_by_hand(identifier + key) & (WORD >> 1)
    return word % config.rows + number % config.tables * config.rows


@settings(max_examples=200)
@given(
    word=st.integers(-(1 << 63), (1 << 63) - 1),
    size=st.integers(1, (1 << 40) - 1) | st.sampled_from([1, 2, 1 << 20]),
)
def test_the_hash_is_that_of_unbounded_integers(word: int, size: int) -> None:
    mixed = mix_by_hand(word)
    assert mix(torch.tensor([word])).item() == signed(mixed)
    assert remainder(torch.tensor([signed(mixed)]), size).item() == (mixed & (WORD >> 1)) % size


@pytest.mark.parametrize("rows", [97, 128])
@pytest.mark.parametrize("chunks", [2, (1, 3, 2)])
def test_rows_are_those_of_the_definition(rows: int, chunks: int | tuple[int, ...]) -> None:
    config = UnifiedConfig(rows=rows, chunk_dim=4, chunks=chunks, tables=3, seed=7)
    ids = torch.tensor([[0, 5, -3], [1 << 61, 5, 5]])
    counts = (chunks,) * 3 if isinstance(chunks, int) else chunks
    expected = []
    for line in ids.tolist():
        number = itertools.count()
        expected.append(
            [
                row_by_hand(name, chunk, next(number), identifier, config)
                for name, identifier, count in zip(NAMES, line, counts, strict=True)
                for chunk in range(count)
            ]
        )
    assert make(config).rows_of(ids).tolist() == expected


def test_an_embedding_is_its_chunks_side_by_side() -> None:
    config = UnifiedConfig(rows=31, chunk_dim=3, chunks=2, tables=2)
    embedding = make(config)
    ids = torch.tensor([[4, 9, 2], [8, 9, 1]])
    table = embedding.weight.detach()
    found = embedding(ids)
    assert found.shape == (2, 3, 6)
    rows = embedding.rows_of(ids)
    for line, feature in itertools.product(range(2), range(3)):
        first, second = rows[line, 2 * feature], rows[line, 2 * feature + 1]
        assert first < 31 <= second  # chunk numbers alternate between the two tables
        assert torch.equal(found[line, feature], torch.cat([table[first], table[second]]))


def test_features_of_different_widths_lie_side_by_side() -> None:
    embedding = make(UnifiedConfig(rows=31, chunk_dim=3, chunks=(1, 3, 2)))
    assert embedding.widths == (3, 9, 6)
    assert embedding.flat(torch.zeros(5, 3, dtype=torch.int64)).shape == (5, 18)


def test_a_bag_is_the_sum_of_its_ids_and_an_empty_one_is_zero() -> None:
    embedding = make(UnifiedConfig(rows=101, chunk_dim=4, chunks=2))
    ids = torch.tensor([[4, 9, 2], [8, 9, 1]])
    both = embedding([ragged([[4, 8]]), ragged([[9, 9]]), ragged([[2, 1]])])
    torch.testing.assert_close(both[0], embedding(ids).sum(dim=0))
    empty = embedding([ragged([[], [4]]), ragged([[], [9]]), ragged([[], [2]])])
    assert not empty[0].any()
    assert torch.equal(empty[1], embedding(ids)[0])
    mixed = embedding([ids[:, 0], ragged([[9], [9]]), ids[:, 2]])
    assert torch.equal(mixed, embedding(ids))


def test_lists_of_one_length_come_as_a_matrix_and_are_bags() -> None:
    tables = StackedEmbedding((9, 9, 9), 8)
    tables.initialise(np.random.default_rng(5))
    rows = [[4, 8], [0, 4], [8, 8]]
    for embedding in (make(UnifiedConfig(rows=101, chunk_dim=4, chunks=2)), tables):
        plain = torch.tensor([1, 2, 3])
        as_matrices = embedding([plain, torch.tensor(rows), torch.tensor([[7], [6], [5]])])
        assert torch.equal(as_matrices, embedding([plain, ragged(rows), ragged([[7], [6], [5]])]))
        no_ids = embedding([plain, torch.zeros(3, 0, dtype=torch.int64), plain])
        assert not no_ids[:, 1].any()


def test_every_row_is_as_likely_as_any_other_for_every_salt() -> None:
    config = UnifiedConfig(rows=500, chunk_dim=1, chunks=3)
    # Consecutive ids, as a vocabulary has them: the worst case of a weak hash.
    rows = make(config).rows_of(torch.arange(100_000)[:, None].expand(-1, 3))
    for chunk in rows.T.numpy():
        assert stats.chisquare(np.bincount(chunk, minlength=500)).pvalue > 1e-4


def test_the_rows_of_two_salts_are_independent() -> None:
    config = UnifiedConfig(rows=30, chunk_dim=1, chunks=2)
    rows = make(config).rows_of(torch.arange(60_000)[:, None].expand(-1, 3)).numpy()
    for first, second in itertools.combinations(range(6), 2):
        together = np.bincount(rows[:, first] * 30 + rows[:, second], minlength=900)
        assert stats.chisquare(together).pvalue > 1e-4, (first, second)


def test_another_seed_assigns_other_rows() -> None:
    config = UnifiedConfig(rows=1000, chunk_dim=1)
    ids = torch.arange(3000).view(1000, 3)
    same = make(config).rows_of(ids) == make(dataclasses.replace(config, seed=1)).rows_of(ids)
    assert same.float().mean() < 0.01


def test_a_feature_keeps_its_rows_when_others_come_and_go() -> None:
    config = UnifiedConfig(rows=1000, chunk_dim=1, chunks=2)
    ids = torch.arange(50)[:, None]
    alone = make(config, ("zip",)).rows_of(ids)
    assert torch.equal(make(config).rows_of(ids.expand(-1, 3))[:, 4:], alone)


def test_parameters_are_counted_alike_for_every_kind_of_table() -> None:
    """The demonstration's numbers: 2 tables of 1,440 rows of width 8 are 23,040, as many as 1,440 rows of width 16."""
    config = UnifiedConfig(rows=1440, chunk_dim=8, chunks=2, tables=2)
    assert config.parameters == make(config).weight.numel() == 23_040
    stacked = StackedEmbedding((700, 440, 300), 16)
    assert stacked.weight.numel() == config.parameters


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("kind", ["dlrm", "dcnv2"])
def test_it_takes_the_place_of_tables_in_both_models(kind: str, lists: bool) -> None:
    unified = UnifiedConfig(rows=50, chunk_dim=2, chunks=2)
    shape = {"table_sizes": (1, 1, 1), "embedding_dim": 4, "dense_features": 5, "feature_names": NAMES}
    model: DLRM | DCNv2
    if kind == "dlrm":
        model = DLRM(DLRMConfig(**shape, bottom=(4,), top=(8, 1), unified=unified), seed=1)
    else:
        model = DCNv2(DCNv2Config(**shape, deep=(8,), unified=unified), seed=1)
    assert model.shape.embedding_parameters == model.embeddings.weight.numel() == 100
    ids: object = torch.randint(1 << 62, (7, 3), generator=torch.Generator().manual_seed(0))
    if lists:
        ids = [ragged([[3, 1 << 60]] * 7)] * 3
    batch = {"dense": torch.ones(7, 5), "sparse": ids, "label": torch.ones(7)}
    assert model.logits(batch).shape == (7,)
    model.loss(batch).backward()
    gradient = model.embeddings.weight.grad
    assert gradient is not None
    assert gradient.is_sparse


@pytest.mark.parametrize("lists", [False, True])
def test_gradients_match_finite_differences(lists: bool) -> None:
    embedding = UnifiedEmbedding(NAMES, UnifiedConfig(rows=5, chunk_dim=2, chunks=2), sparse=False).double()
    embedding.initialise(np.random.default_rng(3))
    # Few rows, so that chunks, features and ids collide and gradients add up.
    ids: object = torch.arange(9).view(3, 3)
    if lists:
        ids = [ragged([[1, 2], [], [3]]), ragged([[1], [4, 4], []]), ragged([[], [0], [7, 8, 9]])]

    def pooled(weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(embedding, {"weight": weight}, (ids,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(pooled, (embedding.weight.detach().clone().requires_grad_(),))


def test_a_checkpoint_holds_the_table_only() -> None:
    assert set(make(UnifiedConfig(rows=10, chunk_dim=2)).state_dict()) == {"weight"}


def test_columns_are_checked_as_those_of_tables_are() -> None:
    embedding = make(UnifiedConfig(rows=10, chunk_dim=2))
    with pytest.raises(SchemaError, match=r"`sparse` must have shape \(rows, 3\)"):
        embedding(torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(SchemaError, match="column for each of the 3 features, but 1"):
        embedding([ragged([[1]])])
    with pytest.raises(SchemaError, match="column `zip` has 1 rows"):
        embedding([ragged([[1], [2]]), ragged([[1], [2]]), ragged([[1]])])
    with pytest.raises(SchemaError, match="column `movie` must be a tensor of int64"):
        embedding([ragged([[1]]), Ragged(torch.ones(1), torch.tensor([0, 1])), ragged([[1]])])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": 0}, "`rows`=.* must be a whole number, 1 or more"),
        ({"chunk_dim": 0}, "`chunk_dim`"),
        ({"tables": 0}, "`tables`"),
        ({"seed": -1}, "`seed`"),
        ({"chunks": 0}, "`chunks` must be at least 1"),
        ({"chunks": (1, 0, 2)}, "`chunks` must be at least 1"),
        ({"chunks": ()}, "`chunks` must be at least 1"),
        ({"chunks": (1, 2)}, "`chunks` must have a number for each of the 3 features, but 2"),
    ],
)
def test_a_shape_that_makes_no_sense_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(UnifiedConfig(**{"rows": 10, "chunk_dim": 2, **changes}))  # type: ignore[arg-type]


def test_two_features_of_one_name_would_share_a_salt() -> None:
    with pytest.raises(ConfigError, match="distinct names"):
        UnifiedEmbedding(("user", "user"), UnifiedConfig(rows=10, chunk_dim=2))


def test_chunks_that_do_not_fill_dlrms_vectors_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"must add up to `embedding_dim` \(4\).* widths of \[6\]"):
        DLRMConfig(
            table_sizes=(1, 1),
            embedding_dim=4,
            bottom=(4,),
            unified=UnifiedConfig(rows=10, chunk_dim=3, chunks=2),
        )
