from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from intune.errors import ConfigError, DataError
from intune.workloads.pairs import negatives
from intune.workloads.pairs.data import grouped
from intune.workloads.pairs.negatives import NegativeOptions, NegativeSampler


def sampler(
    user: np.ndarray, item: np.ndarray, *, users: int, items: int, **options: Any
) -> tuple[NegativeSampler, np.ndarray]:
    counts = np.bincount(item, minlength=items)
    return NegativeSampler(grouped(user, item, rows=users), counts, NegativeOptions(**options)), counts


def pairs(
    users: int = 20, items: int = 30, share: float = 0.3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    return np.nonzero(np.random.default_rng(seed).random((users, items)) < share)


@given(
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 1000),
    distribution=st.sampled_from(["uniform", "popularity"]),
    bits=st.booleans(),
)
def test_no_negative_is_an_item_that_the_user_has_met_or_nobody_has(
    share: float, seed: int, distribution: str, bits: bool
) -> None:
    user, item = pairs(share=share, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(negatives, "MOST_BITS", 1 << 29 if bits else 0)
        assume(max(np.bincount(user)) < len(set(item)))  # else see the test of a user who has met everything
        draw, counts = sampler(user, item, users=20, items=30, distribution=distribution, count=4, seed=seed)
    out = draw({"user": user, "item": item})
    assert out["negative"].shape == (len(user), 4)
    assert out["negative"].dtype == np.int64
    met_pairs = set(zip(user, item, strict=True))
    drawn = {(one, other) for one, row in zip(user, out["negative"], strict=True) for other in row}
    assert not drawn & met_pairs
    assert (counts[out["negative"]] > 0).all()


def test_the_same_batch_has_the_same_negatives_wherever_it_is_made() -> None:
    user, item = pairs()
    draw, _ = sampler(user, item, users=20, items=30, count=2, seed=7)
    again = pickle.loads(pickle.dumps(draw))
    block = {"user": user, "item": item}
    first = draw(block)["negative"]
    np.testing.assert_array_equal(first, draw(block)["negative"])
    np.testing.assert_array_equal(first, again(block)["negative"])
    assert set(block) == {"user", "item"}


def test_another_order_or_seed_has_other_negatives() -> None:
    user, item = pairs()
    draw, _ = sampler(user, item, users=20, items=30, seed=7)
    other, _ = sampler(user, item, users=20, items=30, seed=8)
    first = draw({"user": user, "item": item})["negative"]
    back = draw({"user": user[::-1].copy(), "item": item[::-1].copy()})["negative"][::-1]
    assert (first != back).any()
    assert (first != other({"user": user, "item": item})["negative"]).any()


@pytest.mark.parametrize(
    ("distribution", "power"), [("uniform", 1.0), ("popularity", 1.0), ("popularity", 0.5)]
)
def test_items_are_drawn_as_often_as_their_distribution_says(distribution: str, power: float) -> None:
    # User 0 has met item 0 only; the others made items popular.
    item = np.concatenate([[0], np.repeat(np.arange(5), [3, 5, 10, 20, 40])])
    user = np.concatenate([[0], np.arange(1, len(item))])
    draw, counts = sampler(
        user, item, users=len(user), items=6, distribution=distribution, power=power, count=20_000
    )
    found = np.bincount(draw.draw(np.array([0]), np.random.default_rng(0))[0], minlength=6)
    weights = counts.astype(float) ** power if distribution == "popularity" else (counts > 0).astype(float)
    weights[0] = 0
    expected = weights / weights.sum() * 20_000
    np.testing.assert_allclose(found, expected, atol=5 * np.sqrt(20_000 / 4))
    assert found[0] == found[5] == 0


def test_a_user_with_one_item_left_gets_it_without_endless_draws() -> None:
    items = 400
    user = np.concatenate([np.zeros(items - 1, dtype=np.int64), [1]])
    item = np.concatenate([np.arange(items - 1), [items - 1]])
    draw, _ = sampler(user, item, users=2, items=items, count=50)
    assert set(draw.draw(np.array([0]), np.random.default_rng(0))[0]) == {items - 1}


def test_users_who_have_met_nearly_everything_are_drawn_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    users, items, left = 4, 300, 3
    user = np.repeat(np.arange(users + 1), [items - left] * users + [items])
    item = np.concatenate(
        [(np.arange(items - left) + one) % items for one in range(users)] + [np.arange(items)]
    )
    counts = np.bincount(item, minlength=items)
    seen = grouped(user[user < users], item[user < users], rows=users)
    draw = NegativeSampler(seen, counts, NegativeOptions(distribution="popularity", power=1.0))
    asked = []
    original = draw._unmet
    monkeypatch.setattr(draw, "_unmet", lambda one, *rest: asked.append(one) or original(one, *rest))
    batch = np.tile(np.arange(users), 3000)
    drawn = draw.draw(batch, np.random.default_rng(0))[:, 0]
    assert sorted(asked) == list(range(users))
    for one in range(users):
        unmet = (items - left + one + np.arange(left)) % items
        found = np.array([(drawn[batch == one] == each).sum() for each in unmet])
        assert found.sum() == 3000
        np.testing.assert_allclose(found / 3000, counts[unmet] / counts[unmet].sum(), atol=0.05)


def test_a_user_who_has_met_everything_is_named() -> None:
    user, item = np.array([0, 1, 1]), np.array([0, 0, 1])
    with pytest.raises(DataError, match=r"user 1 has met all 2 items .* in row 1 of the table `users`"):
        sampler(user, item, users=2, items=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distribution": "best"}, "`distribution`='best' is unknown"),
        ({"count": 0}, "`count`=.* must be a whole number, 1 or more"),
        ({"power": -1.0}, "`power` must be 0 or more"),
        ({"seed": -1}, "`seed`=.* must be a whole number, 0 or more"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NegativeOptions(**options)
