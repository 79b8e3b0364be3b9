from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from intune.errors import ConfigError
from intune.workloads.sequences.language_model import (
    SmallLanguageModel,
    SmallLanguageModelConfig,
    WordTokenizer,
    pad_tokens,
)
from intune.workloads.sequences.stages import IGNORED

LINES = ["1. Alien\n2. Heat\n3. Up\n", "1. Heat\n2. Up\n3. Alien\n"]
CONFIG = SmallLanguageModelConfig(width=16, layers=2, heads=2, context=24, dropout=0.0)


def small(seed: int = 0, **changes: float) -> SmallLanguageModel:
    config = SmallLanguageModelConfig(**{**vars(CONFIG), **changes})  # type: ignore[arg-type]
    model = SmallLanguageModel(WordTokenizer.of(LINES), config, seed=seed)
    return model.eval()


@given(text=st.text(max_size=40), known=st.lists(st.text(max_size=8), max_size=4))
def test_no_text_is_lost_whatever_is_known(text: str, known: list[str]) -> None:
    tokenizer = WordTokenizer.of(known)
    text = text.encode(errors="replace").decode()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_words_with_their_space_signs_and_line_ends_are_tokens() -> None:
    tokenizer = WordTokenizer.of(LINES)
    assert len(tokenizer.encode("1. Alien\n")) == 4
    assert tokenizer.encode("\n") == [10]
    assert tokenizer.encode("Z") == [90], "what is not known is spelt in bytes"
    assert tokenizer.size == 256 + len(tokenizer.words)
    assert WordTokenizer.of(LINES, least=3).words == (".",)
    assert pickle.loads(pickle.dumps(tokenizer)).encode("1. Up") == tokenizer.encode("1. Up")


def test_the_loss_is_the_mean_cross_entropy_of_what_is_learned() -> None:
    model = small()
    tokens = torch.as_tensor(
        pad_tokens([model.tokenizer.encode(LINES[0]), model.tokenizer.encode("1. Up\n")])
    )
    target = tokens.clone()
    target[0, :5] = IGNORED
    logits = model(tokens.clamp(min=0))
    expected = []
    for row, place in (target != IGNORED).nonzero().tolist():
        if place:
            expected.append(-F.log_softmax(logits[row, place - 1], dim=0)[target[row, place]])
    torch.testing.assert_close(model.loss({"tokens": tokens, "target": target}), torch.stack(expected).mean())


def test_what_comes_later_changes_nothing() -> None:
    model = small()
    one = torch.tensor([model.tokenizer.encode(LINES[0])])
    other = one.clone()
    other[0, 7:] = 65
    torch.testing.assert_close(model(one)[0, :7], model(other)[0, :7])


def test_a_cold_model_writes_what_is_likeliest_at_every_token() -> None:
    model = small(temperature=1e-4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    prompt = "1. Alien\n2."
    tokens = model.tokenizer.encode(prompt)
    for _ in range(6):
        following = int(model(torch.tensor([tokens]))[0, -1].argmax())
        tokens.append(following)
    expected = model.tokenizer.decode(tokens[len(model.tokenizer.encode(prompt)) :]).partition("\n")[0]
    made = model.complete(prompt, count=3, most=6, generator=torch.Generator().manual_seed(0))
    assert made == [expected] * 3


def test_draws_follow_the_probabilities() -> None:
    model = small()
    prompt = "1."
    weights = F.softmax(model(torch.tensor([model.tokenizer.encode(prompt)]))[0, -1], dim=0)
    made = model.complete(prompt, count=4000, most=1, generator=torch.Generator().manual_seed(0))
    share = sum(text == " Up" for text in made) / 4000
    assert share == pytest.approx(weights[model.tokenizer.encode(" Up")[0]].item(), abs=0.01)


def test_of_a_prompt_too_long_the_end_is_read() -> None:
    model = small(temperature=0.1)
    prompt = "1. Heat\n" * 40
    end = model.tokenizer.decode(model.tokenizer.encode(prompt)[-(24 - 10) :])
    texts = [
        model.complete(text, count=5, most=10, generator=torch.Generator().manual_seed(0))
        for text in (prompt, end, prompt + "2.")
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_small_model_learns_its_lines_by_heart() -> None:
    torch.manual_seed(0)
    model = small(temperature=0.01).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    tokens = torch.as_tensor(pad_tokens([model.tokenizer.encode(line) for line in LINES]))
    for _ in range(120):
        optimizer.zero_grad()
        model.loss({"tokens": tokens, "target": tokens}).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()
    generator = torch.Generator().manual_seed(0)
    assert set(model.complete("1. Alien\n2. Heat\n3.", count=4, most=8, generator=generator)) == {" Up"}
    assert set(model.complete("1. Heat\n2.", count=4, most=8, generator=generator)) == {" Up"}


def test_tokens_are_padded_on_the_right() -> None:
    assert pad_tokens([[1, 2], [3]]).tolist() == [[1, 2], [3, IGNORED]]
    assert pad_tokens([]).shape == (0, 0)
    assert pad_tokens([[1]]).dtype == np.int64


@pytest.mark.parametrize("wrong", [{"context": 1}, {"heads": 129}, {"dropout": -0.1}, {"layers": 0}])
def test_shapes_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        SmallLanguageModelConfig(**wrong)  # type: ignore[arg-type]
