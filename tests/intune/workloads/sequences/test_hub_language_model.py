"""A GPT-2 of a few thousand random weights, saved and loaded as a model of the hub would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from intune.errors import ConfigError
from intune.workloads.sequences.language_model import pad_tokens
from intune.workloads.sequences.stages import IGNORED

transformers: Any = pytest.importorskip("transformers")
tokenizers: Any = pytest.importorskip("tokenizers")

from intune.workloads.sequences.hub_language_model import HubLanguageModel  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    inner.train_from_iterator(["1. Alien\n2. Heat\n"], trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner).save_pretrained(path)
    config = transformers.GPT2Config(
        vocab_size=inner.get_vocab_size(),
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(path)
    return path


def test_its_loss_is_the_mean_cross_entropy_of_what_is_learned(folder: Path) -> None:
    model = HubLanguageModel(str(folder)).eval()
    assert model.context == 32
    tokens = torch.as_tensor(
        pad_tokens([model.tokenizer.encode("1. Alien\n2. Heat\n"), model.tokenizer.encode("1. Heat\n")])
    )
    target = tokens.clone()
    target[0, :3] = IGNORED
    alone = []
    for row in range(2):
        known = tokens[row][tokens[row] != IGNORED]
        logits = model.inner(known[None]).logits[0].log_softmax(dim=1)
        alone += [
            -logits[place - 1, token]
            for place, token in enumerate(known)
            if place and target[row, place] != IGNORED
        ]
    torch.testing.assert_close(model.loss({"tokens": tokens, "target": target}), torch.stack(alone).mean())


def test_it_completes_the_line_and_the_generator_decides(folder: Path) -> None:
    model = HubLanguageModel(str(folder)).eval()

    def write(seed: int, prompt: str = "1. Alien\n2.") -> list[str]:
        before = torch.get_rng_state()
        made = model.complete(prompt, count=4, most=6, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(torch.get_rng_state(), before)
        return made

    assert write(0) == write(0) != write(1)
    assert len(write(0)) == 4
    assert not any("\n" in line for line in write(0))
    assert len(write(0, "1. Alien\n" * 30)) == 4, "a prompt too long is read from its end"


def test_a_model_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        HubLanguageModel(str(tmp_path))
