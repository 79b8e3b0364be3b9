from __future__ import annotations

import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from intune.errors import ConfigError, DataError, IntuneError, NotFoundError
from intune.pipelines import Loader, Pipeline
from intune.pipelines.schema import Ragged
from intune.workloads.data.market import MarketOptions, write_market
from intune.workloads.data.movielens import read_movielens
from intune.workloads.data.ratings import RatingsOptions, write_ratings
from intune.workloads.data.splits import SplitOptions
from intune.workloads.pairs.data import find_rating_data
from intune.workloads.sequences import job as sequence_job
from intune.workloads.sequences import llm_embeddings
from intune.workloads.sequences.bert4rec import BERT4RecConfig
from intune.workloads.sequences.evaluation import keep_elements, rank_sessions
from intune.workloads.sequences.job import SequenceJob, _training, ready
from intune.workloads.sequences.models import MODELS, Material, TextOptions, module_of
from intune.workloads.training.fitting import FitOptions
from tests.intune.workloads.ratings_files import drawn, write_recbole

SMALL: dict[str, dict[str, Any]] = {
    "bert4rec": {"width": 16, "length": 6, "batch_size": 8, "learning_rate": 0.003},
    "llm2bert4rec": {"width": 8, "length": 6, "batch_size": 8},
    "sasrec": {"width": 16, "length": 6, "batch_size": 8},
    "gru4rec": {"width": 16, "length": 6, "batch_size": 8},
    "llm-seq-prompt": {
        "length": 3,
        "width": 16,
        "heads": 2,
        "context": 64,
        "batch_size": 8,
        "completions": 3,
        "most_tokens": 8,
    },
}
FIT = FitOptions(metric="ndcg@10", epochs=2, evaluate_epochs=1, patience=5)


def letters(texts: Sequence[str]) -> Any:
    """A text's first digits, as a direction."""
    digits = [[float(sign) for sign in text + "00000000" if sign in "0123456789"][:8] for text in texts]
    return np.array(digits, dtype=np.float32) + 0.1


@pytest.fixture(autouse=True)
def _encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(llm_embeddings._encoders, "letters", letters)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("sessions")
    found = read_movielens(write_recbole(base / "files", drawn(users=24, items=15, per_user=9)))
    options = RatingsOptions(split=SplitOptions(name="leave-one-out"), row_group_rows=8)
    write_ratings(found, options, base / "data", kind="movielens")
    return base / "data"


def job_of(model: str, folder: Path, **changes: Any) -> SequenceJob:
    settings = {
        "data": str(folder),
        "settings": SMALL.get(model, {}),
        "text": TextOptions(model="letters"),
        "executor": "threads",
        "cpus": 2,
        "memory": "64MiB",
        "cutoffs": (5, 10),
        "fit": FIT,
    }
    return SequenceJob(model=model, **{**settings, **changes})


@pytest.mark.parametrize("model", sorted(MODELS))
def test_every_model_is_trained_and_judged_and_the_same_every_time(model: str, folder: Path) -> None:
    results = []
    for _ in range(2):
        with ready(job_of(model, folder)) as run:
            result = run.run()
            assert result.test is not None
            metrics = result.test.compute()
            results.append(metrics)
            assert (result.fit is not None) == (module_of(run.recommender) is not None)
            if result.fit is not None:
                assert run.steps == 2 * 3
                assert result.fit.train.step == 6
    assert results[0] == results[1]
    assert metrics["users"] + metrics["cold"] == 24
    assert 0 <= metrics["ndcg@10"] <= 1


@pytest.mark.parametrize("model", ["popularity", "sasrec"])
def test_of_a_large_catalogue_few_sessions_are_scored_at_once(
    model: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ready(job_of(model, folder)) as run:
        run.train()
        expected = run.rank("test").compute()
        numbers = 5 * run.data.items + 4
    monkeypatch.setattr(sequence_job, "SCORES_AT_ONCE", numbers)
    with ready(job_of(model, folder)) as run:
        run.train()
        asked: list[int] = []
        scores = run.recommender.scores

        def counted(batch: Any) -> torch.Tensor:
            asked.append(len(batch["items"]))
            return scores(batch)

        monkeypatch.setattr(run.recommender, "scores", counted)
        assert run.rank("test").compute() == pytest.approx(expected)
    assert asked == [5, 5, 5, 5, 4]


@pytest.mark.parametrize("model", ["bert4rec", "sasrec"])
def test_a_run_that_goes_on_ends_as_one_that_was_not_broken_off(
    model: str, folder: Path, tmp_path: Path
) -> None:
    states = []
    for options in (
        [replace(FIT, epochs=3)],
        [
            replace(FIT, epochs=3, max_steps=4, checkpoints=tmp_path),
            replace(FIT, epochs=3, checkpoints=tmp_path, resume=True),
        ],
    ):
        for fit in options:
            with ready(job_of(model, folder, fit=fit)) as run:
                run.train()
                module = module_of(run.recommender)
                assert module is not None
                state = module.state_dict()
        states.append(state)
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_a_checkpoint_of_other_settings_is_refused(folder: Path, tmp_path: Path) -> None:
    fit = replace(FIT, checkpoints=tmp_path)
    with ready(job_of("gru4rec", folder, fit=fit)) as run:
        run.train()
    wider = {**SMALL["gru4rec"], "width": 8}
    resumed = replace(fit, resume=True)
    with (
        ready(job_of("gru4rec", folder, fit=resumed, settings=wider)) as run,
        pytest.raises(ConfigError, match="width"),
    ):
        run.train()


def test_masks_are_others_in_every_epoch_and_the_same_for_any_slots(folder: Path) -> None:
    def targets(epochs: int, slots: dict[str, int]) -> list[torch.Tensor]:
        with ready(job_of("bert4rec", folder, slots=slots)) as run:
            assert run.loader is not None
            return [batch["target"].clone() for _ in range(epochs) for batch in run.loader]

    made = targets(2, {})
    assert len(made) == 6
    assert not any(torch.equal(made[0], other) for other in made[1:])
    for one, same in zip(made, targets(2, {"load": 2, "mask": 3}), strict=True):
        assert torch.equal(one, same)


@pytest.mark.parametrize(
    ("model", "column"), [("bert4rec", "target"), ("sasrec", "negative"), ("gru4rec", "sequence")]
)
def test_draws_are_others_in_every_epoch_where_all_sessions_fit_one_batch(
    folder: Path, model: str, column: str
) -> None:
    settings = {**SMALL[model], "length": 3, "batch_size": 1000}

    def epochs(shuffle: int) -> list[list[bytes]]:
        with ready(job_of(model, folder, settings=settings, shuffle=shuffle)) as run:
            assert run.loader is not None
            assert len(run.loader) == (2 if shuffle else 1)
            rows = [
                [row.numpy().tobytes() for batch in run.loader for row in batch[column]] for _ in range(2)
            ]
        return [sorted(each) for each in rows]

    first, second = epochs(8)
    assert first != second
    first, second = epochs(0)
    assert first == second


def test_a_signal_ends_training_without_a_look_at_the_test(folder: Path, tmp_path: Path) -> None:
    fit = replace(FIT, epochs=50, checkpoints=tmp_path, report_every=1)
    with ready(job_of("gru4rec", folder, fit=fit)) as run:
        run.on_step = lambda step, loss, stats: signal.raise_signal(signal.SIGTERM) if step == 2 else None
        result = run.run()
    assert result.test is None
    assert result.fit is not None
    assert result.fit.train.stopped_by == signal.SIGTERM


def test_no_session_is_recommended_what_it_holds(folder: Path) -> None:
    asked: list[Any] = []
    with ready(job_of("popularity", folder)) as run:
        run.train()
        original = run.recommender.scores

        def watched(batch: Any) -> torch.Tensor:
            asked.append((batch["items"], batch["targets"]))
            return original(batch)

        run.recommender.scores = watched  # type: ignore[method-assign]
        run.rank("test")
        for sessions, targets in asked:
            for row in range(len(sessions)):
                known = sessions.values[sessions.offsets[row] : sessions.offsets[row + 1]]
                answer = targets.values[targets.offsets[row] : targets.offsets[row + 1]]
                assert not set(known.tolist()) & set(answer.tolist()), (
                    "the held-out item is not in the session"
                )


def test_held_out_items_are_in_no_training_session(folder: Path) -> None:
    train = pq.read_table(folder / "sessions" / "train").to_pylist()
    test = pq.read_table(folder / "sessions" / "test").to_pylist()
    by_user = {row["user"]: set(row["items"]) for row in train}
    last_trained = {row["user"]: max(row["timestamps"]) for row in train}
    for row in test:
        assert not by_user[row["user"]] & set(row["targets"])
        assert last_trained[row["user"]] <= max(row["timestamps"])


def batch_of(items: list[list[int]], targets: list[list[int]]) -> dict[str, Any]:
    def lists(rows: list[list[int]]) -> Ragged:
        return Ragged(
            torch.tensor([item for row in rows for item in row]),
            torch.tensor(np.cumsum([0, *map(len, rows)])),
        )

    return {"items": lists(items), "targets": lists(targets)}


def test_ranking_leaves_out_what_was_seen_and_what_was_never_trained_on() -> None:
    counts = np.array([5, 4, 0, 2, 1])
    batch = batch_of([[0], [1, 3], [0]], [[1], [2], [2, 4]])
    # Scores that prefer the higher id: item 2 is cold, so the second session asks nothing and the third asks for 4.
    made = rank_sessions(
        lambda batch: torch.arange(5).float().expand(3, -1), [batch], train_counts=counts, cutoffs=(1, 3)
    )
    assert made.cold == 1
    metrics = made.compute()
    assert metrics["users"] == 2
    assert metrics["mrr@3"] == pytest.approx((1 / 3 + 1) / 2)
    assert metrics["hit_rate@1"] == 0.5
    assert made.metrics.per_user("recall@3").tolist() == [1, 1]


def test_ranking_asks_for_an_item_once_and_not_for_what_the_session_holds() -> None:
    counts = np.array([5, 4, 0, 2, 1])
    batch = batch_of([[0], [1, 3], [0, 0]], [[1, 1, 4], [3, 1], [0, 2, 3]])
    made = rank_sessions(
        lambda batch: torch.arange(5).float().expand(3, -1), [batch], train_counts=counts, cutoffs=(1, 3)
    )
    assert (made.cold, made.repeated) == (0, 4)
    assert made.metrics.per_user("recall@3").tolist() == [1, 1]
    assert made.metrics.per_user("recall@1").tolist() == [0.5, 0]
    with pytest.raises(DataError, match=r"of 1 held-out sessions none .* new to the session"):
        rank_sessions(lambda batch: torch.zeros(1, 5), [batch_of([[0]], [[0, 2]])], train_counts=counts)


def test_ranking_refuses_when_nothing_can_be_asked() -> None:
    with pytest.raises(DataError, match="of 1 held-out sessions none"):
        rank_sessions(
            lambda batch: torch.zeros(1, 3), [batch_of([[0]], [[2]])], train_counts=np.array([1, 1, 0])
        )


def test_elements_are_kept_within_their_lists() -> None:
    lists = Ragged(np.array([1, 2, 3, 4]), np.array([0, 2, 2, 3, 4]))
    made, rows = keep_elements(lists, np.array([False, True, False, True]))
    assert made.values.tolist() == [2, 4]
    assert made.offsets.tolist() == [0, 1, 1, 1, 2]
    assert rows.tolist() == [0, 3]


def test_sessions_that_cannot_be_are_refused_with_their_file(folder: Path) -> None:
    def broken(items: list[list[int]], model: str = "bert4rec") -> str:
        with ready(job_of(model, folder)) as run:
            path = folder.parent / "broken.parquet"
            pq.write_table(pa.table({"items": pa.array(items, pa.list_(pa.int64()))}), path)
            recommender: Any = run.recommender
            sessions = Pipeline.from_parquet(path).batch(4)
            with (
                recommender.training_stages(sessions, seed=0).loader(executor="threads") as loader,
                pytest.raises(IntuneError) as caught,
            ):
                list(loader)
        return str(caught.value)

    assert "session 1 of `drawn` is empty" in broken([[1, 2], []])
    assert "the item 99" in broken([[1, 99]])
    assert "broken.parquet" in broken([[1, 99]], "llm-seq-prompt")


def test_users_of_one_interaction_each_leave_nothing_to_learn(folder: Path) -> None:
    job = job_of("sasrec", folder)
    with ready(job) as run:
        lonely: Any = SimpleNamespace(folder=folder, train_pairs=(np.arange(5), np.zeros(5, dtype=np.int64)))
        recommender: Any = run.recommender
        with pytest.raises(DataError, match="no user has 2 interactions to train on"):
            _training(job, lonely, recommender)


def test_embeddings_from_a_file_do_as_well(folder: Path, tmp_path: Path) -> None:
    items = pq.read_table(folder / "items").num_rows
    np.save(tmp_path / "e.npy", np.random.default_rng(0).normal(size=(items, 8)))
    text = TextOptions(model="not asked", embeddings=tmp_path / "e.npy")
    for model in ("llm-seq-sim", "llm2bert4rec"):
        with ready(job_of(model, folder, text=text)) as run:
            assert run.run().test is not None
    np.save(tmp_path / "few.npy", np.zeros((items - 1, 8)))
    with (
        pytest.raises(DataError, match="one embedding for each"),
        ready(job_of("llm-seq-sim", folder, text=TextOptions(embeddings=tmp_path / "few.npy"))),
    ):
        pass


def test_llm2bert4rec_has_defaults_of_its_own(folder: Path, tmp_path: Path) -> None:
    items = pq.read_table(folder / "items").num_rows
    np.save(tmp_path / "e.npy", np.random.default_rng(0).normal(size=(items, 300)))
    text = TextOptions(embeddings=tmp_path / "e.npy")
    with ready(job_of("llm2bert4rec", folder, text=text, settings={"width": 8})) as run:
        config = run.recommender.config  # type: ignore[attr-defined]
    assert config == replace(BERT4RecConfig.beauty_from_text(items=items), width=8)


def test_made_embeddings_are_kept_beside_the_data(folder: Path) -> None:
    with ready(job_of("llm-seq-sim", folder)) as run:
        run.run()
    assert (folder / "embeddings" / "letters.parquet").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert5rec"}, "`model`='bert5rec' is unknown"),
        ({"seed": -1}, "`seed`"),
        ({"seed": 1 << 64}, "`seed` must be from 0"),
        ({"shuffle": -1}, "`shuffle`=.* must be a whole number, 0 or more"),
        (
            {"model": "llm-seq-prompt", "text": TextOptions(embeddings=Path("e.npy"))},
            "cannot be used by llm-seq",
        ),
        ({"settings": {"depth": 3}}, "`depth` is no setting of BERT4Rec"),
        ({"model": "popularity", "settings": {"width": 3}}, "`width` is no setting"),
        ({"settings": {"learning_rate": 0.0}}, "`learning_rate`"),
        ({"settings": {"clip": 0.0}}, "`clip`"),
    ],
)
def test_jobs_that_make_no_sense_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    model = changes.pop("model", "bert4rec")
    with pytest.raises(ConfigError, match=message), ready(job_of(model, folder, **changes)) as run:
        run.train()


@pytest.mark.parametrize("model", ["bert4rec", "gru4rec", "llm-seq-prompt", "popularity"])
@pytest.mark.parametrize("device", ["foo", "cuda:x", "cuda"])
def test_a_device_that_cannot_be_used_is_refused(
    folder: Path, model: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with (
        pytest.raises(ConfigError, match=f"`device`='{device}'"),
        ready(job_of(model, folder, device=device)),
    ):
        pass


def test_a_metric_that_is_not_evaluated_is_refused_before_anything_is_trained(folder: Path) -> None:
    with (
        pytest.raises(ConfigError, match="`metric`='ndcg@20' is not evaluated; there are cold, coverage@10"),
        ready(job_of("gru4rec", folder, fit=replace(FIT, metric="ndcg@20"))),
    ):
        pass
    # Its own decides there.
    with ready(job_of("llm-seq-prompt", folder, fit=replace(FIT, metric="ndcg@20"))):
        pass


def test_a_language_model_of_other_items_is_refused(folder: Path, tmp_path: Path) -> None:
    fit = replace(FIT, epochs=1, checkpoints=tmp_path / "c")
    with ready(job_of("llm-seq-prompt", folder, fit=fit)) as run:
        run.train()
    found = read_movielens(write_recbole(tmp_path / "files", drawn(users=24, items=17, per_user=9)))
    options = RatingsOptions(split=SplitOptions(name="leave-one-out"), row_group_rows=8)
    write_ratings(found, options, tmp_path / "data", kind="movielens")
    resumed = replace(fit, epochs=2, resume=True)
    with (
        ready(job_of("llm-seq-prompt", tmp_path / "data", fit=resumed)) as run,
        pytest.raises(ConfigError, match=r"items was 15 and is 17; names was .*; tokenizer was"),
    ):
        run.train()
    deeper = {**SMALL["llm-seq-prompt"], "layers": 1}
    with (
        ready(job_of("llm-seq-prompt", folder, fit=resumed, settings=deeper)) as run,
        pytest.raises(ConfigError, match="language_model was"),
    ):
        run.train()
    with ready(job_of("llm-seq-prompt", folder, fit=resumed)) as run:
        assert run.train() is not None


@pytest.mark.parametrize("model", ["gru4rec", "popularity", "vsknn", "sasrec"])
def test_data_that_repeat_interactions_are_learnt_from(tmp_path: Path, model: str) -> None:
    write_market(MarketOptions(users=20, items=60, audiences=3, steps=16, volume=2), tmp_path / "market")
    with ready(job_of(model, tmp_path / "market")) as run:
        test = run.run().test
    assert test is not None
    assert test.repeated > 0


def write_sessions(folder: Path, split: str, items: list[list[int]], targets: list[list[int]]) -> None:
    for file in (folder / "sessions" / split).iterdir():
        file.unlink()
    kind = pa.list_(pa.int64())
    rows = {"user": range(len(items)), "items": pa.array(items, kind), "targets": pa.array(targets, kind)}
    pq.write_table(pa.table(rows), folder / "sessions" / split / "part.parquet", row_group_size=1)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_held_out_sessions_that_ask_for_nothing_are_refused_before_anything_is_trained(
    folder: Path, tmp_path: Path, split: str
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "data"))
    write_sessions(copy, split, [[1, 2], [3]], [[2, 1], [3, 3]])
    with (
        pytest.raises(DataError, match=r"of 2 held-out sessions none asks .* new to the session"),
        ready(job_of("gru4rec", copy)),
    ):
        pass
    write_sessions(copy, split, [[1, 2], [3]], [[2, 1], [3, 4]])
    with ready(job_of("gru4rec", copy)):
        pass


@pytest.mark.parametrize("model", ["llm-seq-sim", "llm2bert4rec", "llm-seq-prompt", "popularity"])
def test_every_loader_is_within_the_budget_and_those_open_together_are_so_in_sum(
    folder: Path, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "data", ignore=shutil.ignore_patterns("embeddings")))
    made: list[Loader] = []
    original = Pipeline.loader

    def watched(self: Pipeline, **options: Any) -> Loader:
        made.append(original(self, **options))
        open_now = [loader for loader in made if not loader._closed]
        assert sum(loader.budget.memory for loader in open_now) <= 64 << 20
        return made[-1]

    monkeypatch.setattr(Pipeline, "loader", watched)
    with ready(job_of(model, copy, cpus=1)):
        pass
    assert {loader.budget.cpus for loader in made} == {1}
    assert len(made) == {"llm-seq-sim": 4, "llm2bert4rec": 5, "llm-seq-prompt": 4, "popularity": 3}[model]


@pytest.mark.parametrize(
    "changes",
    [{"agent": "planner"}, {"slots": {"load": 2}}, {"executor": "ray"}],
    ids=lambda each: next(iter(each)),
)
def test_what_is_asked_of_a_loader_that_there_is_not_is_refused(
    folder: Path, changes: dict[str, Any]
) -> None:
    (name,) = changes
    with (
        pytest.raises(ConfigError, match=f"`{name}`=.* is of training, but llm-seq-sim trains nothing"),
        ready(job_of("llm-seq-sim", folder, **changes)),
    ):
        pass


def test_a_language_model_is_not_heard_for_items_that_were_never_trained_on(
    folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "data"))
    path = copy / "ratings" / "train" / "part-00000.parquet"
    rated = pq.read_table(path)
    pq.write_table(rated.filter(pc.not_equal(rated["item"], 3)), path)
    with ready(job_of("llm-seq-prompt", copy)) as run:
        prompt: Any = run.recommender
        monkey: Any = SimpleNamespace(complete=lambda *_, **__: [prompt.names[3], prompt.names[4]])
        prompt.model, kept = monkey, prompt.model
        made = prompt.recommend([0])
        prompt.model = kept
    assert len(made) == 2
    assert 3 not in made


def test_a_folder_without_a_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError), ready(job_of("popularity", tmp_path)):
        pass


def test_items_without_titles_are_called_by_their_text(folder: Path) -> None:
    material = Material(data=find_rating_data(folder))
    assert material.names[0].startswith("Film 1 (1981)")
