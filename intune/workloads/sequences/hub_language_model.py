"""A causal language model of the hub or from a folder, behind the same interface as the small one trained here.

Needs the extra `text`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from intune.pipelines.errors import ConfigError
from intune.workloads.sequences.stages import IGNORED

_tokenizing = threading.Lock()
"""Tokenizers refuse to be changed while another thread uses them. Not a field, since a lock cannot be sent."""


@dataclass(frozen=True)
class HubTokenizer:
    """A tokenizer of transformers, as `language_model.Tokenizer`."""

    inner: Any

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, no special ones added."""
        with _tokenizing:
            return list(self.inner.encode(text, add_special_tokens=False))


class HubLanguageModel(nn.Module):
    """Any causal language model that transformers can load.

    Args:
        name: a folder, or a model's name on the hub.
        temperature: logits are divided by it before a token is drawn.

    Raises:
        ConfigError: transformers is not installed, or there is no such model within reach.
    """

    def __init__(self, name: str, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.name = name
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise ConfigError(
                f"the language model {name!r} needs transformers, which is not installed; install intune[text], or "
                f"train the small one"
            ) from error
        local = {"local_files_only": True} if os.path.isdir(name) else {}
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, **local)
            self.inner = AutoModelForCausalLM.from_pretrained(name, **local)
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"the language model {name!r} cannot be loaded ({reason}); name a folder or a model of a hub within "
                f"reach, or train the small one"
            ) from error
        self.tokenizer = HubTokenizer(tokenizer)
        self.context = int(getattr(self.inner.config, "max_position_embeddings", 1024))
        self._newline = self.tokenizer.encode("\n")[-1]
        self.temperature = temperature

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """See `language_model.LanguageModel.loss`."""
        tokens = batch["tokens"]
        known = tokens != IGNORED
        made = self.inner(input_ids=tokens.clamp(min=0), attention_mask=known.long(), labels=batch["target"])
        loss: Tensor = made.loss
        return loss

    @torch.inference_mode()
    def complete(self, prompt: str, *, count: int, most: int, generator: torch.Generator) -> list[str]:
        """See `language_model.LanguageModel.complete`."""
        tokens = torch.tensor(
            [self.tokenizer.encode(prompt)[-max(1, self.context - most) :]], device=self.inner.device
        )
        # `generate` draws from torch's global generator only; it is put back afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
            made = self.inner.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=True,
                temperature=self.temperature,
                top_k=0,
                num_return_sequences=count,
                max_new_tokens=most,
                eos_token_id=self._newline,
                pad_token_id=self._newline,
            )
        texts = self.tokenizer.inner.batch_decode(made[:, tokens.shape[1] :], skip_special_tokens=True)
        return [text.partition("\n")[0] for text in texts]
