"""The models as a whole: read from Parquet through the pipeline, learn what is planted, resume, refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intune.errors import ConfigError, SchemaError
from intune.workloads.data.market import MarketOptions, write_market
from intune.workloads.data.movielens import read_movielens
from intune.workloads.data.ratings import RatingsOptions, write_ratings
from intune.workloads.data.splits import SplitOptions
from intune.workloads.pairs.data import RatingData, find_rating_data
from intune.workloads.pairs.negatives import NegativeSampler
from intune.workloads.pairs.recommender import OBJECTIVES, PairOptions, PairRecommender, make_encoder
from intune.workloads.training.feeding import FeedOptions, feeding
from intune.workloads.training.fitting import FitOptions
from intune.workloads.training.recommender_job import JobResult, run_job
from tests.intune.workloads.ratings_files import drawn, write_recbole

EVERY = [
    *(("mf", negatives) for negatives in OBJECTIVES if negatives != "mixgcf"),
    *(("lightgcn", negatives) for negatives in ("uniform", "mixgcf", "ans")),
    ("sheaf", "uniform"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RatingData:
    """Two groups of users, each of whom likes the items of one half, whoever is asked for what."""
    folder = tmp_path_factory.mktemp("planted")
    rng = np.random.default_rng(0)
    rows = [
        (user + 1, 30 * (user % 2) + int(item) + 1, 5, 1000 * user + place)
        for user in range(40)
        for place, item in enumerate(rng.permutation(30)[:18])
    ]
    found = read_movielens(write_recbole(folder / "files", rows))
    options = RatingsOptions(split=SplitOptions(valid_share=0.2, test_share=0.2))
    write_ratings(found, options, folder / "data", kind="movielens")
    return find_rating_data(folder / "data")


def train(data: RatingData, options: PairOptions, **fit: Any) -> tuple[JobResult, PairRecommender]:
    recommender = PairRecommender(data=data, options=options)
    with feeding(recommender.pipeline, FeedOptions(executor="threads", cpus=1)) as loader:
        result = run_job(recommender, loader, FitOptions(**{"epochs": 12, "patience": None, **fit}))
    return result, recommender


@pytest.mark.parametrize(("encoder", "negatives"), EVERY)
def test_every_model_learns_who_likes_what(data: RatingData, encoder: str, negatives: str) -> None:
    options = PairOptions(
        encoder=encoder,  # type: ignore[arg-type]
        negatives=negatives,  # type: ignore[arg-type]
        dim=8,
        depth=2,
        candidates=2,
        learning_rate=0.05,
        batch_size=64,
        cutoffs=(10,),
    )
    result, recommender = train(data, options, evaluate_epochs=12)
    ranked = recommender.rank("test")
    user = recommender.model.encoder.scores(torch.arange(2)).detach().numpy()
    assert user[0, :30].mean() > user[0, 30:].mean() + 0.5
    assert user[1, 30:].mean() > user[1, :30].mean() + 0.5
    # Of the 15 items of the right half that a user has not had, three are asked for and ten may be shown.
    assert result.test["hit_rate@10"] > 0.9
    assert result.test["ndcg@10"] == pytest.approx(float(ranked.per_user("ndcg@10").mean()))


@pytest.mark.parametrize(
    ("encoder", "negatives"), [("mf", "ans"), ("lightgcn", "mixgcf"), ("sheaf", "uniform")]
)
def test_two_runs_of_one_seed_and_a_run_cut_in_two_end_alike(
    data: RatingData, tmp_path: Path, encoder: str, negatives: str
) -> None:
    options = PairOptions(
        encoder=encoder,  # type: ignore[arg-type]
        negatives=negatives,  # type: ignore[arg-type]
        dim=4,
        depth=1,
        candidates=2,
        batch_size=100,
        seed=3,
    )
    whole, first = train(data, options, epochs=3)
    _, again = train(data, options, epochs=3)
    _, other = train(data, PairOptions(**{**options.__dict__, "seed": 4}), epochs=3)
    train(data, options, epochs=3, max_steps=7, checkpoints=tmp_path / "c")
    resumed, cut = train(data, options, epochs=3, checkpoints=tmp_path / "c", resume=True)
    table, expected = cut.model.encoder.weight, first.model.encoder.weight
    assert torch.equal(again.model.encoder.weight, expected)
    assert torch.equal(table, expected)
    assert resumed.test == whole.test
    assert not torch.equal(other.model.encoder.weight, expected)


def test_a_checkpoint_of_another_model_is_refused(data: RatingData, tmp_path: Path) -> None:
    train(data, PairOptions(dim=4), epochs=1, checkpoints=tmp_path / "c")
    with pytest.raises(ConfigError, match="dim was 4 and is 8"):
        train(data, PairOptions(dim=8), epochs=1, checkpoints=tmp_path / "c", resume=True)


def test_a_checkpoint_may_go_on_on_another_device_and_be_judged_at_other_places(
    data: RatingData, tmp_path: Path
) -> None:
    recommender = PairRecommender(data=data, options=PairOptions(dim=4, cutoffs=(5, 10)))
    assert not {"device", "cutoffs"} & recommender.config.keys()
    train(data, PairOptions(dim=4), epochs=1, checkpoints=tmp_path / "c")
    result, _ = train(
        data, PairOptions(dim=4, cutoffs=(5, 10)), epochs=2, checkpoints=tmp_path / "c", resume=True
    )
    assert result.fit.resumed_from is not None


def test_what_cannot_be_used_is_refused_before_a_step_is_taken(
    data: RatingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(PairRecommender, "loss", never)
    with pytest.raises(ConfigError, match="`metric`='ndcg@7' is not evaluated; there are coverage@10"):
        train(data, PairOptions(dim=4), metric="ndcg@7")
    with pytest.raises(ConfigError, match="`device`='foo' is unknown"):
        train(data, PairOptions(dim=4, device="foo"))
    found = read_movielens(write_recbole(tmp_path / "files", drawn()))
    options = RatingsOptions(split=SplitOptions(name="session-time"))
    write_ratings(found, options, tmp_path / "data", kind="movielens")
    with pytest.raises(SchemaError, match="holds out no valid interaction"):
        train(find_rating_data(tmp_path / "data"), PairOptions(dim=4))


@pytest.mark.parametrize(
    ("encoder", "negatives"), [("mf", "dns"), ("lightgcn", "mixgcf"), ("sheaf", "uniform")]
)
def test_data_that_repeat_interactions_are_learnt_from(tmp_path: Path, encoder: str, negatives: str) -> None:
    write_market(MarketOptions(users=20, items=60, audiences=3, steps=16, volume=2), tmp_path / "market")
    data = find_rating_data(tmp_path / "market")
    assert len(data.train_edges[0]) < len(data.train_pairs[0])
    options = PairOptions(encoder=encoder, negatives=negatives, dim=4, depth=1, candidates=2)  # type: ignore[arg-type]
    result, recommender = train(data, options, epochs=1)
    assert recommender.held_out["test"].repeated > 0
    assert 0 < result.test["ndcg@20"] <= 1


def test_batches_come_through_the_pipeline_with_their_negatives(data: RatingData) -> None:
    recommender = PairRecommender(
        data=data, options=PairOptions(negatives="dns", candidates=3, batch_size=50)
    )
    assert recommender.pipeline.stage_names == ("load", "shuffle", "batch", "negatives", "transfer")
    with feeding(recommender.pipeline, FeedOptions(executor="threads", cpus=1)) as loader:
        epochs = [
            [{name: column.clone() for name, column in batch.items()} for batch in loader] for _ in (0, 1)
        ]
    for batches in epochs:
        rows = sum(len(batch["user"]) for batch in batches)
        assert rows == len(data.train_pairs[0])
        assert {tuple(batch["negative"].shape) for batch in batches[:-1]} == {(50, 3)}
    pairs = [
        sorted(
            (int(user), int(item))
            for batch in batches
            for user, item in zip(batch["user"], batch["item"], strict=True)
        )
        for batches in epochs
    ]
    assert pairs[0] == pairs[1] == sorted(zip(*(ids.tolist() for ids in data.train_pairs), strict=True))
    assert not torch.equal(epochs[0][0]["negative"], epochs[1][0]["negative"])


def test_negatives_are_others_in_every_epoch_where_all_pairs_fit_one_batch(data: RatingData) -> None:
    def drawn_by_pair(shuffle: int) -> list[dict[tuple[int, int], int]]:
        options = PairOptions(dim=4, batch_size=100_000, shuffle=shuffle)
        pipeline = PairRecommender(data=data, options=options).pipeline
        epochs = []
        with feeding(pipeline, FeedOptions(executor="threads", cpus=1)) as loader:
            assert len(loader) == (2 if shuffle else 1)
            for _ in range(2):
                made = list(loader)
                columns = [
                    torch.cat([batch[name].flatten() for batch in made]).tolist()
                    for name in ("user", "item", "negative")
                ]
                epochs.append({(user, item): drawn for user, item, drawn in zip(*columns, strict=True)})
        return epochs

    first, second = drawn_by_pair(8)
    assert first.keys() == second.keys()
    assert sum(first[pair] != second[pair] for pair in first) > len(first) / 2
    first, second = drawn_by_pair(0)
    assert first == second


def test_the_graph_is_that_of_training_alone(data: RatingData) -> None:
    encoder = make_encoder(data, PairOptions(encoder="lightgcn", dim=4))
    assert len(encoder.pattern) == 2 * len(data.train_pairs[0])


def test_the_sampler_knows_training_only(data: RatingData) -> None:
    sampler = NegativeSampler.of(data, PairOptions().sampling())
    user, item = (np.asarray(data.table("ratings/test").column(name)) for name in ("user", "item"))
    drawn = {
        (int(one), int(other))
        for seed in range(30)
        for one, (other,) in zip(user, sampler.draw(user, np.random.default_rng(seed)), strict=True)
    }
    assert drawn & set(
        zip(user.tolist(), item.tolist(), strict=True)
    )  # the future may be drawn: it is not known


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "gcn"}, "`encoder`='gcn' is unknown"),
        ({"negatives": "all"}, "`negatives`='all' is unknown"),
        ({"negatives": "mixgcf"}, "needs LightGCN's layers, but `encoder` is 'mf'"),
        ({"learning_rate": 0.0}, "`learning_rate` must be above 0"),
        ({"candidates": 0}, "`candidates`=.* must be a whole number, 1 or more"),
        ({"batch_size": 0}, "`batch_size`=.* must be a whole number, 1 or more"),
        ({"shuffle": -1}, "`shuffle`=.* must be a whole number, 0 or more"),
        ({"seed": -1}, "`seed` must be from 0"),
        ({"seed": 1 << 64}, "`seed` must be from 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PairOptions(**options)
