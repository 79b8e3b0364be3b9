from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from intune.errors import CorruptError, DataError, NotFoundError
from intune.workloads.data.movielens import GENRES_100K, read_movielens
from tests.intune.workloads.ratings_files import drawn, lines_of, write_recbole

RATINGS = [(196, 242, 3, 881250949), (22, 242, 1, 878887116), (22, 51, 2.0, 880606923)]


def write_100k(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "u.data").write_text(lines_of(RATINGS))
    (folder / "u.user").write_text("22|25|M|writer|40206\n196|49|M|writer|55105\n")
    kinds = ["0"] * 19
    kinds[GENRES_100K.index("Comedy")] = kinds[GENRES_100K.index("Drama")] = "1"
    unknown = ["1"] + ["0"] * 18
    (folder / "u.item").write_bytes(
        f"242|Kolya (1996)|24-Jan-1997||http://x|{'|'.join(kinds)}\n51|unknown||||{'|'.join(unknown)}\n".encode(
            "latin-1"
        )
    )
    return folder


def write_1m(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "ratings.dat").write_text("1::1193::5::978300760\n2::661::3::978302109\n")
    (folder / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")
    (folder / "movies.dat").write_bytes(
        "661::James and the Giant Peach (1996)::Animation|Children's|Musical\n"
        "1193::Misérables, Les (1995)::Drama\n".encode("latin-1")
    )
    return folder


def test_the_files_of_100k_are_read_with_titles_years_and_genres(tmp_path: Path) -> None:
    found = read_movielens(write_100k(tmp_path / "ml-100k"))
    assert found.users.column("user_id").to_pylist() == ["22", "196"]
    assert found.users.column("age").to_pylist() == [25, 49]
    assert found.items.to_pylist() == [
        {
            "item_id": "242",
            "title": "Kolya",
            "year": 1996,
            "genres": ["Comedy", "Drama"],
            "text": "Kolya (1996). Comedy, Drama",
        },
        {"item_id": "51", "title": None, "year": None, "genres": [], "text": "unknown title"},
    ]
    np.testing.assert_array_equal(found.user, [1, 0, 0])
    np.testing.assert_array_equal(found.item, [0, 0, 1])
    np.testing.assert_array_equal(found.rating, [3, 1, 2])
    np.testing.assert_array_equal(found.timestamp, [row[3] for row in RATINGS])


def test_the_files_of_1m_are_read_with_their_own_fields_and_encoding(tmp_path: Path) -> None:
    found = read_movielens(write_1m(tmp_path / "ml-1m"))
    assert found.items.column("title").to_pylist() == ["James and the Giant Peach", "Misérables, Les"]
    assert found.items.column("genres").to_pylist()[0] == ["Animation", "Children's", "Musical"]
    assert found.users.column("gender").to_pylist() == ["F", "M"]
    assert found.users.column("age").to_pylist() == [1, 56]
    np.testing.assert_array_equal(found.item, [1, 0])


def test_files_in_utf_8_are_read_whatever_the_layout(tmp_path: Path) -> None:
    folder = write_1m(tmp_path / "ml-10m")
    films = folder / "movies.dat"
    films.write_text(films.read_text("latin-1"), "utf-8-sig")
    assert read_movielens(folder).items.column("title").to_pylist() == [
        "James and the Giant Peach",
        "Misérables, Les",
    ]


def write_csv(folder: Path, columns: str = "userId,movieId,rating,timestamp") -> Path:
    folder.mkdir()
    (folder / "ratings.csv").write_text(
        f"{columns}\r\n" + "2,11,3.5,97\r\n1,11,4.0,96\r\n1,146309,0.5,95\r\n"
    )
    (folder / "movies.csv").write_text(
        'movieId,title,genres\r\n11,"American President, The (1995)",Comedy|Drama\r\n'
        '146309,"The ""Boy"" and the Beast",(no genres listed)\r\n',
        "utf-8",
    )
    return folder


def test_the_files_of_20m_and_later_are_read(tmp_path: Path) -> None:
    found = read_movielens(write_csv(tmp_path / "ml-latest-small"))
    assert found.users.column("user_id").to_pylist() == ["1", "2"]
    assert found.items.column("title").to_pylist() == ["American President, The", 'The "Boy" and the Beast']
    assert found.items.column("text").to_pylist() == [
        "American President, The (1995). Comedy, Drama",
        'The "Boy" and the Beast',
    ]
    np.testing.assert_array_equal(found.user, [1, 0, 0])
    np.testing.assert_array_equal(found.item, [0, 0, 1])
    np.testing.assert_array_equal(found.rating, [3.5, 4, 0.5])
    np.testing.assert_array_equal(found.timestamp, [97, 96, 95])


def test_columns_in_another_order_are_refused(tmp_path: Path) -> None:
    folder = write_csv(tmp_path / "mine", "movieId,userId,rating,timestamp")
    with pytest.raises(
        CorruptError, match=r"ratings\.csv, line 1: the columns are 'movieId,.* not 'userId,movieId"
    ):
        read_movielens(folder)


@pytest.mark.parametrize("suffix", [".zip", ".whl"])
def test_a_zip_file_or_wheel_gives_the_same_as_its_folder(tmp_path: Path, suffix: str) -> None:
    folder = write_recbole(tmp_path / "files", drawn())
    path = tmp_path / f"some-data{suffix}"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("recbole/other.py", "raise RuntimeError")
        for file in folder.iterdir():
            archive.write(file, f"recbole/dataset_example/ml-100k/{file.name}")
    from_folder, from_zip = read_movielens(folder), read_movielens(path)
    np.testing.assert_array_equal(from_folder.user, from_zip.user)
    np.testing.assert_array_equal(from_folder.timestamp, from_zip.timestamp)
    assert from_folder.items.equals(from_zip.items)
    assert from_zip.items.column("text")[0].as_py() == "Film 1 (1981). Drama, Sci-Fi"


def test_ratings_alone_make_items_without_titles_in_order_of_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "u.data").write_text(lines_of([(10, 9, 1, 5), (2, 10, 1, 6)]))
    found = read_movielens(tmp_path / "u.data")
    assert found.users.column("user_id").to_pylist() == ["2", "10"]
    assert found.items.column("item_id").to_pylist() == ["9", "10"]
    assert found.items.column("title").null_count == 2
    assert found.items.column("text").to_pylist() == ["9", "10"], (
        "told apart by their ids, as nothing is known"
    )


def test_ids_that_are_one_number_written_differently_stand_in_one_order(tmp_path: Path) -> None:
    spelled = [f"{'0' * zeros}7" for zeros in range(12)]
    (tmp_path / "u.data").write_text("".join(f"{token}\tb{token}\t3\t1\n" for token in reversed(spelled)))
    found = read_movielens(tmp_path)
    # Strings are hashed anew in every process: in a set their order is another in every run.
    assert found.users.column("user_id").to_pylist() == sorted(spelled)


def test_ratings_of_an_unknown_item_are_refused(tmp_path: Path) -> None:
    folder = write_100k(tmp_path / "ml")
    (folder / "u.data").write_text(lines_of([*RATINGS, (22, 1683, 4, 880606923)]))
    with pytest.raises(DataError, match=r"u\.data rates with the id '1683', which u\.item does not have"):
        read_movielens(folder)


def test_an_item_listed_twice_is_refused(tmp_path: Path) -> None:
    folder = write_1m(tmp_path / "ml")
    with (folder / "users.dat").open("a") as file:
        file.write("1::M::25::1::00000\n")
    with pytest.raises(DataError, match=r"users\.dat has the id '1' twice"):
        read_movielens(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("196\t242\tgood\t881250949\n", r"u\.data, line 4: the rating is 'good', not a number"),
        ("196\t242\n", r"u\.data, line 4: 2 fields were found instead of 4"),
        (
            "196\t242\t3\tnan\n",
            r"u\.data, line 4: the timestamp is 'nan', not the number of seconds since 1970",
        ),
        ("196\t242\t3\t1e300\n", r"u\.data, line 4: the timestamp is '1e300', not the number of seconds"),
        (
            "196\t242\t3\t2015-03-02T10:00:00Z\n",
            r"the timestamp is '2015-03-02T10:00:00Z', not the number of seconds since 1970 that all lines need",
        ),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, line: str, message: str) -> None:
    folder = write_100k(tmp_path / "ml")
    with (folder / "u.data").open("a") as file:
        file.write(line)
    with pytest.raises(CorruptError, match=message):
        read_movielens(folder)


CSV = "userId,movieId,rating,timestamp\n"


def test_ids_of_another_encoding_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_bytes(CSV.encode() + b"\xe8,1,3,1\n\xe9,2,3,1\n\xe9,3,3,1\n")
    found = read_movielens(tmp_path)
    assert found.user.tolist() == [0, 1, 1]
    assert found.users.column("user_id").to_pylist() == [r"\xe8", r"\xe9"]


@pytest.mark.parametrize(("user", "item", "missing"), [("", "2", "user"), ("1", " ", "item")])
def test_an_interaction_without_a_user_or_an_item_is_named(
    tmp_path: Path, user: str, item: str, missing: str
) -> None:
    (tmp_path / "ratings.csv").write_text(f"{CSV}1,1,3,1\n{user},{item},3,1\n{user},{item},4,2\n")
    with pytest.raises(CorruptError, match=rf"ratings\.csv, interaction 2: there is no {missing}; leave out"):
        read_movielens(tmp_path)


def test_names_of_columns_may_stand_between_quotation_marks(tmp_path: Path) -> None:
    header = ",".join(f'"{name}"' for name in CSV.strip().split(","))
    (tmp_path / "ratings.csv").write_text(f'{header}\n"1","2",3,1\n')
    assert read_movielens(tmp_path).items.column("item_id").to_pylist() == ["2"]


def test_a_line_that_is_no_csv_is_named(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text(f'{CSV}1,2,3,4\n"1\r",2\r,3,4\n', newline="")
    with pytest.raises(CorruptError, match=r"ratings\.csv, line 3: it cannot be cut into fields \("):
        read_movielens(tmp_path)


def test_of_a_file_without_line_ends_the_beginning_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text((CSV + "1,2,3,4\n" * 10_000).replace("\n", "\r"), newline="")
    with pytest.raises(CorruptError, match=r"line 1: the columns are 'userId,.*…, not 'userId,") as caught:
        read_movielens(tmp_path)
    assert len(str(caught.value)) < 500


def test_an_empty_file_of_ratings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "u.data").write_text("")
    with pytest.raises(CorruptError, match="is empty"):
        read_movielens(tmp_path)


def test_a_missing_path_and_a_folder_without_ratings_say_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        read_movielens(tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match="holds no file of ratings"):
        read_movielens(tmp_path)


def test_memory_for_ratings_is_little_more_than_their_file(tmp_path: Path) -> None:
    rows = 20_000
    path = tmp_path / "u.data"
    path.write_text(
        "".join(f"user-{row % 97}\titem-{row % 89}\t3.5\t{881250949 + row}\n" for row in range(rows))
    )
    tracemalloc.start()
    try:
        found = read_movielens(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == rows
    # A string for every id of every row would be 250 bytes a row by itself.
    assert peak < 3 * path.stat().st_size + 1_000_000
