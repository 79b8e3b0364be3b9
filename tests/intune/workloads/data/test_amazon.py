from __future__ import annotations

import bz2
import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intune.errors import ConfigError, CorruptError, NotFoundError, SkipLimitError
from intune.workloads.data.amazon import AmazonOptions, read_amazon

OLD = [
    {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1_400_000_000, "reviewText": "good"},
    {"reviewerID": "A2", "asin": "B2", "overall": 3.0, "unixReviewTime": 1_300_000_000},
    {"reviewerID": "A1", "asin": "B2", "overall": 1.0, "unixReviewTime": 1_350_000_000},
]
NEW = [
    {"user_id": "U1", "asin": "X", "parent_asin": "P", "rating": 4.0, "timestamp": 1_600_000_000_123},
    {"user_id": "U2", "asin": "Q", "parent_asin": "Q", "rating": 2.0, "timestamp": 1_500_000_000_000},
]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records)
    if path.suffix == ".gz":
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.write(text)
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["reviews.json", "reviews.json.gz"])
def test_reviews_plain_or_compressed_are_read(tmp_path: Path, name: str) -> None:
    found, bad = read_amazon(AmazonOptions(files=(write(tmp_path / name, OLD),)))
    assert bad == 0
    assert found.users.column("user_id").to_pylist() == ["A1", "A2"]
    assert found.items.column("item_id").to_pylist() == ["B1", "B2"]
    np.testing.assert_array_equal(found.user, [0, 1, 0])
    np.testing.assert_array_equal(found.item, [0, 1, 1])
    np.testing.assert_array_equal(found.rating, [5, 3, 1])
    np.testing.assert_array_equal(found.timestamp, [1_400_000_000, 1_300_000_000, 1_350_000_000])


def test_milliseconds_and_parents_of_the_files_of_2023_are_understood(tmp_path: Path) -> None:
    items = [{"parent_asin": "P", "title": "Soap", "categories": ["Beauty", "Bath"], "store": "Acme"}]
    found, _ = read_amazon(
        AmazonOptions(files=(write(tmp_path / "meta.jsonl", items), write(tmp_path / "reviews.jsonl", NEW)))
    )
    np.testing.assert_array_equal(found.timestamp, [1_600_000_000, 1_500_000_000])
    assert found.items.to_pylist()[0] == {
        "item_id": "P",
        "title": "Soap",
        "year": None,
        "genres": ["Bath"],
        "text": "Soap. Acme, Bath",
    }
    assert found.items.to_pylist()[1]["title"] is None
    assert found.items.to_pylist()[1]["text"] == "Q"


def test_python_literals_of_2014_are_understood_and_items_nobody_reviewed_left_out(tmp_path: Path) -> None:
    meta = tmp_path / "meta.json"
    meta.write_text(
        "{'asin': 'B2', 'title': \"Men's balm\", 'categories': [['Beauty', 'Shaving'], ['Gifts']]}\n"
        "{'asin': 'ZZ', 'title': 'unreviewed'}\n"
    )
    found, bad = read_amazon(AmazonOptions(files=(write(tmp_path / "r.json", OLD), meta)))
    assert bad == 0
    assert found.items.column("title").to_pylist() == [None, "Men's balm"]
    assert found.items.column("genres").to_pylist() == [[], ["Shaving"]]


def test_bytes_that_are_no_text_are_replaced_in_titles_and_make_no_id(tmp_path: Path) -> None:
    lines = [b'{"user_id": "\xe8", "asin": "B1", "rating": 5, "timestamp": 9}']
    lines += [json.dumps({**record, "reviewText": "caf~"}).encode().replace(b"~", b"\xe9") for record in OLD]
    (tmp_path / "reviews.json").write_bytes(b"\n".join(lines))
    described = [b'{"asin": "B1", "title": "caf\xe9"}', b"{'asin': 'B2', 'title': 'th\xe9'}"]
    (tmp_path / "meta.json").write_bytes(b"\n".join(described))
    found, bad = read_amazon(AmazonOptions(files=(tmp_path / "meta.json", tmp_path / "reviews.json")))
    assert bad == 1
    assert found.users.column("user_id").to_pylist() == ["A1", "A2"]
    assert found.items.column("title").to_pylist() == ["caf�", "th�"]


def test_half_characters_of_a_text_are_replaced(tmp_path: Path) -> None:
    items = [
        {
            "asin": "B2",
            "title": "Balm \ud83d",
            "categories": ["Beauty", "\ude00 Men"],
            "brand": "A\ud83d\ude00",
        }
    ]
    meta = write(tmp_path / "meta.json", items)
    found, bad = read_amazon(AmazonOptions(files=(write(tmp_path / "r.json", OLD), meta)))
    assert bad == 0
    assert found.items.to_pylist()[1]["title"] == "Balm \ufffd"
    assert found.items.to_pylist()[1]["text"] == "Balm \ufffd. A\U0001f600, \ufffd Men"


def test_a_file_is_told_by_its_first_good_line_however_many_bad_ones_come_before(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("{broken\n" * 30 + "".join(json.dumps(record) + "\n" for record in OLD))
    found, bad = read_amazon(AmazonOptions(files=(path,), max_bad_lines=30))
    assert (len(found), bad) == (3, 30)
    with pytest.raises(SkipLimitError, match="30 bad lines are more than `max_bad_lines`=29"):
        read_amazon(AmazonOptions(files=(path,), max_bad_lines=29))


@pytest.mark.parametrize("records", [OLD, NEW], ids=["old", "new"])
def test_a_review_without_its_user_is_a_bad_line_and_no_item(
    tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    nobody = {name: value for name, value in records[0].items() if name not in ("reviewerID", "user_id")}
    found, bad = read_amazon(AmazonOptions(files=(write(tmp_path / "r.json", [nobody, *records]),)))
    assert (len(found), bad) == (len(records), 1)


@pytest.mark.parametrize("categories", [{"kind": "Beauty"}, "Beauty", [None], [[]], [1, 2], None])
def test_categories_of_another_make_are_none(tmp_path: Path, categories: Any) -> None:
    meta = write(tmp_path / "meta.json", [{"asin": "B2", "title": "Balm", "categories": categories}])
    found, _ = read_amazon(AmazonOptions(files=(write(tmp_path / "r.json", OLD), meta)))
    assert found.items.column("title").to_pylist() == [None, "Balm"]
    assert found.items.column("genres").to_pylist() == [[], []]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{broken", "it is not JSON"),
        ("[1]", "it is a list"),
        (json.dumps({**OLD[0], "overall": None}), "there is no overall or rating"),
        (json.dumps({**OLD[0], "overall": float("nan")}), "the rating is nan"),
        (json.dumps({**OLD[0], "unixReviewTime": -1}), "the time is -1"),
        (json.dumps({**OLD[0], "unixReviewTime": 1e30}), r"the time is 1e\+30"),
        (json.dumps({**OLD[0], "overall": 10**400}), "int too large"),
        (json.dumps({**OLD[0], "reviewerID": ""}), "there is no reviewerID or user_id"),
        ('{{"a": 1}}', "it is not JSON"),
        ('{"a": ' + "[" * 100_000, "it is nested too deeply"),
        (json.dumps({**OLD[0], "reviewerID": "A\ud83d"}), r"'utf-8' codec can't encode character '\\ud83d'"),
        (json.dumps({**OLD[0], "asin": "B\ude00"}), r"'utf-8' codec can't encode character '\\ude00'"),
    ],
)
def test_bad_lines_are_left_out_and_counted_up_to_a_limit(tmp_path: Path, line: str, reason: str) -> None:
    path = write(tmp_path / "r.json", OLD)
    with path.open("a") as file:
        file.write(f"\n{line}\n")
    found, bad = read_amazon(AmazonOptions(files=(path,), max_bad_lines=1))
    assert (len(found), bad) == (3, 1)
    with pytest.raises(SkipLimitError, match=rf"line 5: {reason}"):
        read_amazon(AmazonOptions(files=(path,), max_bad_lines=0))


def test_files_that_are_cut_short_missing_or_something_else_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "r.json.gz", OLD * 100)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptError, match="cut short or damaged"):
        read_amazon(AmazonOptions(files=(path,)))
    with pytest.raises(NotFoundError, match="does not exist"):
        read_amazon(AmazonOptions(files=(tmp_path / "none.json",)))
    with pytest.raises(CorruptError, match="is neither a file of Amazon's reviews"):
        read_amazon(AmazonOptions(files=(write(tmp_path / "other.json", [{"a": 1}]),)))
    with pytest.raises(NotFoundError, match="no review was found"):
        read_amazon(AmazonOptions(files=(write(tmp_path / "m.json", [{"asin": "B1", "title": "x"}]),)))


def test_a_pipe_is_refused_as_its_first_lines_would_be_gone_when_it_is_read_again() -> None:
    reader, writer = os.pipe()
    try:
        with pytest.raises(
            ConfigError, match=f"/dev/fd/{reader} is no file, and a pipe cannot be read twice"
        ):
            read_amazon(AmazonOptions(files=(Path(f"/dev/fd/{reader}"),)))
    finally:
        os.close(reader)
        os.close(writer)


def test_files_of_which_no_line_can_be_read_are_told_of_by_their_lines(tmp_path: Path) -> None:
    packed = tmp_path / "reviews.json.bz2"
    packed.write_bytes(bz2.compress(json.dumps({"asin": "B1", "reviewerID": "A"}).encode()))
    whole = tmp_path / "reviews.json"
    whole.write_text(json.dumps([{"asin": "B1", "reviewerID": "A"}]))
    for path, reason in ((packed, "it is not JSON"), (whole, "it is a list and not an object")):
        with pytest.raises(
            CorruptError, match=rf"no line that can be read \(.*line 1: {reason}.*plain or gzip"
        ):
            read_amazon(AmazonOptions(files=(path,)))


def test_the_mark_that_some_editors_put_first_is_no_part_of_a_review(tmp_path: Path) -> None:
    review = {"reviewerID": "A", "asin": "B1", "overall": 5.0, "unixReviewTime": 1_000_000_000}
    path = tmp_path / "reviews.json"
    path.write_text(json.dumps(review) + "\n", encoding="utf-8-sig")
    found, bad = read_amazon(AmazonOptions(files=(path,)))
    assert (len(found), bad) == (1, 0)


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="`files` is empty"):
        AmazonOptions(files=())
    with pytest.raises(ConfigError, match="`max_bad_lines` must not be negative"):
        AmazonOptions(files=(Path("x"),), max_bad_lines=-1)
