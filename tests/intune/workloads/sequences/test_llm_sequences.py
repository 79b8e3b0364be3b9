"""LLMSeqSim's weights and similarities by hand, LLM2BERT4Rec's components, LLMSeqPrompt's names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from intune.errors import ConfigError, DataError, SchemaError
from intune.pipelines.schema import Ragged
from intune.workloads.sequences.bert4rec import BERT4Rec, BERT4RecConfig
from intune.workloads.sequences.language_model import WordTokenizer
from intune.workloads.sequences.llm2bert4rec import llm2bert4rec, principal_components
from intune.workloads.sequences.llm_seq_prompt import (
    LLMSeqPrompt,
    LLMSeqPromptConfig,
    TokenizePrompt,
    asking,
    check_names,
    numbered,
)
from intune.workloads.sequences.llm_seq_sim import WEIGHTS, LLMSeqSim, LLMSeqSimConfig
from intune.workloads.sequences.stages import IGNORED

EMBEDDINGS = torch.randn(30, 12, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 13)
UNITS = torch.eye(4)


def session(*items: int, length: int = 5, padding: int = 4) -> torch.Tensor:
    return torch.tensor([[padding] * (length - len(items)) + list(items)])


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("last", [0, 0, 1]),
        ("mean", [1, 1, 1]),
        ("linear", [0.8, 0.9, 1]),
        ("share", [1 / 3, 2 / 3, 1]),
        ("share-squared", [1 / 9, 4 / 9, 1]),
        ("share-cubed", [1 / 27, 8 / 27, 1]),
        ("log", [1 / (math.log(3) + 1), 1 / (math.log(2) + 1), 1]),
        ("reciprocal", [1 / 3, 1 / 2, 1]),
        ("reciprocal-squared", [1 / 9, 1 / 4, 1]),
    ],
)
def test_items_weigh_by_their_place_from_the_end(strategy: Any, expected: list[float]) -> None:
    model = LLMSeqSim(UNITS, LLMSeqSimConfig(strategy=strategy))
    made = model.session_embeddings(session(2, 0, 1))[0]
    total = sum(expected)
    # Unit embeddings show each item's weight at its place.
    assert made.tolist() == pytest.approx([expected[1] / total, expected[2] / total, expected[0] / total, 0])


def test_linear_weights_stay_above_zero_and_every_strategy_is_tested() -> None:
    steps = torch.arange(1.0, 16.0)
    assert WEIGHTS["linear"](steps, torch.tensor(15.0))[10:].tolist() == pytest.approx([1e-5] * 5)
    assert len(WEIGHTS) == 9


def test_an_item_that_occurs_twice_weighs_twice() -> None:
    made = LLMSeqSim(UNITS, LLMSeqSimConfig(strategy="reciprocal")).session_embeddings(session(0, 1, 0))[0]
    assert made.tolist() == pytest.approx([(1 / 3 + 1) / (11 / 6), (1 / 2) / (11 / 6), 0, 0])


def test_similarities_by_hand() -> None:
    embeddings = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    batch = {"sequence": session(0, padding=3)}

    def score(similarity: Any) -> list[float]:
        config = LLMSeqSimConfig(similarity=similarity)
        return LLMSeqSim(embeddings, config).scores(batch)[0].tolist()  # type: ignore[no-any-return]

    assert score("dot") == pytest.approx([25, 3, 8])
    assert score("cosine") == pytest.approx([1, 0.6, 0.8])
    assert score("euclidean") == pytest.approx([1, 1 / (1 + math.sqrt(20)), 1 / (1 + math.sqrt(13))])


def test_wrong_embeddings_and_options_are_refused() -> None:
    with pytest.raises(SchemaError, match="items, dimensions"):
        LLMSeqSim(torch.zeros(3))
    with pytest.raises(ConfigError, match="strategy"):
        LLMSeqSimConfig(strategy="first")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="similarity"):
        LLMSeqSimConfig(similarity="l1")  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [1, 5, 12])
def test_components_are_scikit_learns_but_for_the_sign(width: int) -> None:
    made = principal_components(EMBEDDINGS, width).numpy()
    expected = PCA(n_components=width, svd_solver="full").fit_transform(EMBEDDINGS.double().numpy())
    np.testing.assert_allclose(np.abs(made), np.abs(expected), rtol=1e-4, atol=1e-4)
    largest = np.abs(made).argmax(axis=0)
    assert (made[largest, np.arange(width)] > 0).all()
    for column in range(width):
        assert abs(np.corrcoef(made[:, column], expected[:, column])[0, 1]) == pytest.approx(1)


def test_all_components_keep_all_angles_and_lengths() -> None:
    made = principal_components(EMBEDDINGS, 12)
    centred = EMBEDDINGS - EMBEDDINGS.mean(dim=0)
    torch.testing.assert_close(made @ made.T, centred @ centred.T, rtol=1e-4, atol=1e-3)


def test_components_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="choose one from 1 to 12"):
        principal_components(EMBEDDINGS, 13)
    broken = EMBEDDINGS.clone()
    broken[3, 4] = torch.nan
    with pytest.raises(DataError, match="NaN"):
        principal_components(broken, 2)
    same = torch.full((30, 12), 0.1)
    same[3, 4] = same[3, 4].nextafter(torch.tensor(1.0))
    for alike in (same, torch.zeros(30, 12)):
        with pytest.raises(DataError, match="the text embeddings of all 30 items are the same"):
            principal_components(alike, 2)
    principal_components(same + EMBEDDINGS * 1e-4, 2)


def test_the_item_table_starts_from_text_and_all_else_is_bert4recs() -> None:
    config = BERT4RecConfig(items=30, width=8, heads=2, length=5)
    made, plain = llm2bert4rec(config, EMBEDDINGS, seed=3), BERT4Rec(config, seed=3)
    torch.testing.assert_close(made.items.weight[:30], principal_components(EMBEDDINGS, 8))
    torch.testing.assert_close(made.items.weight[30:], plain.items.weight[30:])
    assert made.items.weight.requires_grad
    rest = {name: value for name, value in made.state_dict().items() if name != "items.weight"}
    for name, value in rest.items():
        assert torch.equal(value, plain.state_dict()[name])
    scaled = llm2bert4rec(config, EMBEDDINGS, seed=3, spread=0.1).items.weight[:30]
    assert scaled.std().item() == pytest.approx(0.1)
    torch.testing.assert_close(scaled / scaled.std(), made.items.weight[:30] / made.items.weight[:30].std())


def test_embeddings_of_other_items_are_refused() -> None:
    with pytest.raises(ConfigError, match="30 rows, but the catalogue has 31"):
        llm2bert4rec(BERT4RecConfig(items=31, width=8), EMBEDDINGS)
    with pytest.raises(ConfigError, match="spread"):
        llm2bert4rec(BERT4RecConfig(items=30, width=8), EMBEDDINGS, spread=0.0)


NAMES = ("Alien (1979)", "Heat (1995)", "Toy Story (1995)", "Up", "Alien (1979)")


class Scripted:
    """A language model that says what it was told to, and remembers what it was asked."""

    context = 100

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.prompts: list[str] = []
        self.tokenizer = WordTokenizer.of([numbered(NAMES)])

    def loss(self, batch: Any) -> torch.Tensor:
        return torch.zeros(())

    def complete(self, prompt: str, *, count: int, most: int, generator: torch.Generator) -> list[str]:
        self.prompts.append(prompt)
        return [f" {line} " for line in self.lines[:count]]


def embed(texts: Sequence[str]) -> Any:
    """Near the item whose name shares most of the text's letters."""
    shared = [[sum(a == b for a, b in zip(text, name, strict=False)) for name in NAMES] for text in texts]
    return np.array(shared, dtype=np.float32)


def asked(lines: list[str], seen: list[int], **options: Any) -> tuple[list[int], Scripted, LLMSeqPrompt]:
    model = Scripted(lines)
    prompt = LLMSeqPrompt(model, NAMES, torch.eye(5), embed, LLMSeqPromptConfig(**options))
    return prompt.recommend(seen), model, prompt


def test_names_of_the_catalogue_are_recommended_in_the_order_in_which_they_were_written() -> None:
    chosen, model, _ = asked(["Up", "Heat (1995)"], [2])
    assert chosen == [3, 1]
    assert model.prompts == ["1. Toy Story (1995)\n2."]


def test_a_name_that_is_not_in_the_catalogue_stands_for_the_nearest_item() -> None:
    chosen, _, prompt = asked(["Heat (1996)", "Toy Story 2"], [3])
    assert chosen == [1, 2]
    assert (prompt.written, prompt.in_catalogue) == (2, 0)


def test_what_was_written_before_or_seen_stands_for_the_nearest_of_the_others() -> None:
    near = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.1, 1, 0], [0, 0, 1], [1, 0.1, 0]])
    prompt = LLMSeqPrompt(Scripted(["Heat (1995)", "Heat (1995)", "Alien (1979)"]), NAMES, near, embed)
    # Twice Heat: the second is its neighbour Toy Story. Alien was seen: its double, item 4.
    assert prompt.recommend([0]) == [1, 2, 4]


def test_nothing_is_recommended_twice_nor_what_was_seen_and_blank_lines_are_left_out() -> None:
    chosen, _, _ = asked(["Up", "", "Up", "Up", "Up", "Up"], [0, 1])
    assert chosen[0] == 3
    assert sorted(chosen) == [2, 3, 4]


def test_what_is_no_candidate_stands_for_the_nearest_that_is() -> None:
    near = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.1, 1, 0], [0, 0, 1], [1, 0.1, 0]])
    lines = ["Heat (1995)", "Alien (1979)", "Up", "Up"]
    candidates = torch.tensor([True, False, True, False, True])
    prompt = LLMSeqPrompt(Scripted(lines), NAMES, near, embed, candidates=candidates)
    # Heat stands for Toy Story, Alien for its double; nothing is left for Up.
    assert prompt.recommend([0]) == [2, 4]
    assert prompt.recommend([2, 4]) == [0]
    with pytest.raises(ConfigError, match="`candidates` has 2 items, but there are 5 names"):
        LLMSeqPrompt(Scripted([]), NAMES, near, embed, candidates=torch.ones(2, dtype=torch.bool))


def test_only_the_last_names_are_shown() -> None:
    _, model, _ = asked(["Up"], [0, 1, 2], length=2)
    assert model.prompts == ["1. Heat (1995)\n2. Toy Story (1995)\n3."]


def test_recommendations_become_scores() -> None:
    prompt = LLMSeqPrompt(Scripted(["Up", "Heat (1995)"]), NAMES, torch.eye(5), embed)
    batch = {"items": Ragged(torch.tensor([2, 0]), torch.tensor([0, 1, 2]))}
    scores = prompt.scores(batch)
    assert scores[0].tolist() == [-torch.inf, 1, -torch.inf, 2, -torch.inf]
    assert scores.shape == (2, 5)


def test_names_and_embeddings_must_fit() -> None:
    with pytest.raises(ConfigError, match="4 rows, but there are 5 names"):
        LLMSeqPrompt(Scripted([]), NAMES, torch.eye(4), embed)
    with pytest.raises(DataError, match="item 1 has no name"):
        check_names(["a", " "])
    with pytest.raises(DataError, match="item 0 has no name"):
        check_names([None])
    with pytest.raises(DataError, match="all 3 items have the name 'unknown title'"):
        check_names(["unknown title"] * 3)
    assert check_names(["one"]) == ("one",)
    with pytest.raises(DataError, match="several lines"):
        check_names(["a\nb"])
    wrong = LLMSeqPrompt(
        Scripted(["no such name"]), NAMES, torch.eye(5), lambda texts: np.zeros((len(texts), 3))
    )
    with pytest.raises(ConfigError, match="5 dimensions"):
        wrong.recommend([0])


def test_a_session_becomes_a_numbered_list_in_tokens() -> None:
    tokenizer = WordTokenizer.of([numbered(NAMES)])
    sessions = Ragged(np.array([0, 1, 2, 3]), np.array([0, 3, 4]))
    made = TokenizePrompt(names=NAMES, tokenizer=tokenizer, length=2, context=50)({"drawn": sessions})
    tokens, target = np.asarray(made["tokens"]), np.asarray(made["target"])
    texts = [tokenizer.decode(row[row != IGNORED].tolist()) for row in tokens]
    assert texts == ["1. Heat (1995)\n2. Toy Story (1995)\n", "1. Up\n"]
    np.testing.assert_array_equal(tokens, target)


def test_only_the_last_name_is_learned_if_asked_and_the_end_is_kept() -> None:
    tokenizer = WordTokenizer.of([numbered(NAMES)])
    sessions = Ragged(np.array([0, 1, 2, 3]), np.array([0, 3, 4]))
    stage = TokenizePrompt(names=NAMES, tokenizer=tokenizer, length=3, context=50, learned="last")
    target = np.asarray(stage({"drawn": sessions})["target"])
    texts = [tokenizer.decode(row[row != IGNORED].tolist()) for row in target]
    assert texts == [" Toy Story (1995)\n", " Up\n"]
    short = TokenizePrompt(names=NAMES, tokenizer=tokenizer, length=3, context=4)({"drawn": sessions})
    assert tokenizer.decode(np.asarray(short["tokens"])[0].tolist()) == " (1995)\n"


def test_what_is_asked_begins_what_is_learned() -> None:
    assert numbered(["a", "b"]).startswith(asking(["a"]))
    assert numbered(["a"]).startswith(asking([]))
