from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from intune.errors import ConfigError
from intune.pipelines.transforms import Vocabulary
from intune.workloads.clicks.data import ClickData, find_click_data
from intune.workloads.clicks.dcnv2 import DCNv2Config
from intune.workloads.clicks.dlrm import DLRMConfig
from intune.workloads.clicks.table_sizes import KAGGLE_SIZES, hashed_rows
from intune.workloads.clicks.tables import DEFAULT_SHRINKAGE, TableChoice, with_tables
from intune.workloads.clicks.unified_embedding import WORD_IDS, UnifiedConfig

CONFIG = DCNv2Config(table_sizes=KAGGLE_SIZES, embedding_dim=8, deep=(4,))
CARDINALITIES = {"shop": 3, "item": 5}


def write(folder: Path, description: dict[str, Any] | None = None) -> ClickData:
    """Click logs of two features of text and one dense input."""
    table = {
        "bought": pa.array([1.0, 0, 0, 1, 1, 0], pa.float32()),
        "price": pa.array([1.0, 2, 3, 4, 5, 6], pa.float32()),
        "shop": ["a", "b", "a", "c", None, "a"],
        "item": ["v", "w", "x", "y", "z", "v"],
    }
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        pq.write_table(pa.table(table), folder / split / "0.parquet")
    columns = {"label": "bought", "dense": ["price"], "categorical": ["shop", "item"], "multi_hot": False}
    found = {"schema_version": 1, "kind": "shop", "columns": columns, **(description or {})}
    (folder / "dataset.json").write_text(json.dumps(found))
    return find_click_data(str(folder))


@pytest.fixture
def data(tmp_path: Path) -> ClickData:
    return write(tmp_path / "data", {"cardinalities": CARDINALITIES})


def test_every_kind_takes_the_datas_own_features(data: ClickData) -> None:
    for choice in (TableChoice(), TableChoice(kind="unified", rows=9), TableChoice(kind="full")):
        config, _ = with_tables(CONFIG, choice, data)
        assert config.feature_names == ("shop", "item")
        assert len(config.table_sizes) == 2
        assert config.dense_features == 1


def test_hashed_tables_are_capped_by_the_choice_or_by_the_preset(data: ClickData) -> None:
    assert with_tables(CONFIG, TableChoice(rows=7), data, most=5)[0].table_sizes == (7, 7)
    assert with_tables(CONFIG, TableChoice(), data, most=5)[0].table_sizes == (5, 5)
    config, ids = with_tables(CONFIG, TableChoice(), data)
    assert config.table_sizes == ids == hashed_rows((3, 5))


def test_full_tables_have_a_row_for_each_id_and_one_for_all_others(data: ClickData) -> None:
    config, ids = with_tables(CONFIG, TableChoice(kind="full"), data)
    assert isinstance(ids, Vocabulary)
    assert config.table_sizes == (4, 6)
    assert config.unified is None


@pytest.mark.parametrize("parameters", [1600, 1000])
def test_a_budget_means_as_many_parameters_hashed_as_unified(data: ClickData, parameters: int) -> None:
    hashed, _ = with_tables(CONFIG, TableChoice(parameters=parameters), data)
    unified, ids = with_tables(CONFIG, TableChoice(kind="unified", parameters=parameters, tables=5), data)
    assert hashed.embedding_parameters == unified.embedding_parameters == parameters
    assert unified.unified == UnifiedConfig(rows=parameters // 20, chunk_dim=4, chunks=2, tables=5)
    assert ids == WORD_IDS
    assert unified.embedding_widths == (8, 8)


def test_a_unified_table_is_a_quarter_of_hashed_ones_where_nothing_is_said(data: ClickData) -> None:
    hashed, _ = with_tables(CONFIG, TableChoice(), data)
    unified, _ = with_tables(CONFIG, TableChoice(kind="unified", chunks=4), data)
    assert unified.embedding_parameters == hashed.embedding_parameters // DEFAULT_SHRINKAGE


def test_the_models_own_rules_still_hold(data: ClickData) -> None:
    dlrm = DLRMConfig(table_sizes=KAGGLE_SIZES)
    config, _ = with_tables(dlrm, TableChoice(kind="unified", rows=10, chunks=4), data)
    assert isinstance(config, DLRMConfig)
    assert config.embedding_widths == (16, 16)
    assert not config.check_ids


def test_data_that_does_not_say_how_many_ids_there_are_can_only_be_counted(tmp_path: Path) -> None:
    data = write(tmp_path / "data")
    with pytest.raises(
        ConfigError, match="the data has 2 categorical features, but nothing says how many ids"
    ):
        with_tables(CONFIG, TableChoice(), data)
    assert with_tables(CONFIG, TableChoice(kind="full"), data)[0].table_sizes == (4, 6)
    with pytest.raises(ConfigError, match="or 'unified' with `table_rows` or `embedding_parameters`"):
        with_tables(CONFIG, TableChoice(kind="unified"), data)


@pytest.mark.parametrize("size", [{"rows": 100}, {"parameters": 400}])
def test_unified_tables_of_a_given_size_need_not_know_how_many_ids_there_are(
    tmp_path: Path, size: dict[str, int]
) -> None:
    config, ids = with_tables(CONFIG, TableChoice(kind="unified", **size), write(tmp_path / "data"))
    assert config.unified == UnifiedConfig(rows=100, chunk_dim=4, chunks=2)
    assert (config.table_sizes, ids) == ((1, 1), WORD_IDS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "half"}, "`embedding`='half' is unknown; use hashed, unified, full"),
        ({"rows": 0}, "`table_rows`=.* must be a whole number, 1 or more"),
        ({"parameters": 0}, "`embedding_parameters`=.* must be a whole number, 1 or more"),
        ({"tables": 0}, "`tables`=.* must be a whole number, 1 or more"),
        ({"chunks": 0}, "`chunks`=.* must be a whole number, 1 or more"),
        ({"kind": "full", "rows": 5}, "`table_rows`=5 leaves no row for each id"),
        ({"kind": "full", "parameters": 5}, "`embedding_parameters`=5 leaves no row for each id"),
        ({"rows": 5, "parameters": 5}, "give one of them"),
        ({"tables": 3}, "`tables`=3 is of unified tables, but `embedding`='hashed' was found; leave it out"),
        ({"kind": "full", "chunks": 2}, "`chunks`=2 is of unified tables, but `embedding`='full' was found"),
    ],
)
def test_choices_that_make_no_sense_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TableChoice(**changes)


def test_chunks_must_divide_the_width(data: ClickData) -> None:
    with pytest.raises(ConfigError, match="`chunks`=3 must divide the embeddings' width, 8"):
        with_tables(CONFIG, TableChoice(kind="unified", chunks=3), data)
