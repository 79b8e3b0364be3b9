"""Augmented negative sampling (arXiv 2308.05972), after the paper and its public code: an objective for any `Encoder`.

A gate splits the factors of a negative item into hard ones, which the positive shares, and easy ones. The easy ones
are pushed a little towards the positive's, and of all candidates so augmented the one that is hardest, and has become
harder, is learnt from. With embeddings u, p and candidates n of one row:

- ``g = σ((W_i n + b_i) ⊙ (W_u u + b_u))``; ``n_h = g ⊙ n``, ``n_e = n − n_h``, ``p_h = g ⊙ p``, ``p_e = p − p_h``
- contrastive: ``ln(1 + Σ exp(u·n_e − u·n_h))``
- disentangling: mean ``‖n_h − p_h‖`` + sum ``‖p_e ⊙ n_e‖``, over the candidates
- ``ñ = n + sign(p_e − n_e) ⊙ 0.1 · σ(1 / (wᵀ(n_h ⊙ p_h) + b)) · r / ‖r‖`` with r ~ U[0, 1) for each factor
- the candidate with the highest ``u·ñ + ε (u·ñ − u·n)`` is taken; loss = BPR(u, p, ñ) + γ (contrastive +
  disentangling) + the norm penalty

The values of γ, ε and the number of candidates are not published: search for them. How all this is computed is in
`ans_loss.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from intune.pipelines.errors import ConfigError
from intune.workloads.pairs.ans_loss import Parameters, Settings, ans_loss
from intune.workloads.pairs.pairwise import Encoder, Nodes, half_squares, look_up


class ANS(nn.Module):
    """Gates and margin, and the loss that they are part of. 2 · (width² + width) + width + 1 parameters.

    Args:
        width: of the encoder's final embeddings.
        gamma: weight of the contrastive and the disentangling loss.
        epsilon: weight of what a candidate has gained by the push, when one is chosen.
        l2: as of `BPR`; of the chosen negative.
        seed: of the initial parameters.
    """

    def __init__(
        self, width: int, *, gamma: float = 0.01, epsilon: float = 1.0, l2: float = 1e-5, seed: int = 0
    ) -> None:
        super().__init__()
        for name, value in (("gamma", gamma), ("epsilon", epsilon), ("l2", l2)):
            if not 0 <= value < float("inf"):
                raise ConfigError(f"`{name}` must be 0 or more, but {value} was found")
        self.gamma, self.epsilon, self.l2 = gamma, epsilon, l2
        self.item_gate = nn.Linear(width, width)
        self.user_gate = nn.Linear(width, width)
        self.margin = nn.Linear(width, 1)
        generator = torch.Generator().manual_seed(seed)
        bound = width**-0.5
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-bound, bound, generator=generator)

    def forward(self, encoder: Encoder, nodes: Nodes, random: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            encoder: whose embeddings are trained.
            nodes: of the batch.
            random: r up to a factor, shape ``(count, rows, width)``; drawn by default.
        """
        final: Tensor = encoder()
        if random is None:
            random = draw((*nodes.negative.shape, final.shape[1]), final.device)
        same = final is encoder.weight
        settings = Settings(self.gamma, self.epsilon, self.l2 if same else 0.0)
        loss, chosen = ans_loss(final, self.tensors(), nodes, random, encoder.users, settings)
        if not same:
            loss = loss + self.l2 * half_squares(look_up(encoder.weight, nodes.keep(chosen)))
        return loss

    def tensors(self) -> Parameters:
        """What `ans_loss` takes of it."""
        item, user, margin = self.item_gate, self.user_gate, self.margin
        return Parameters(item.weight, item.bias, user.weight, user.bias, margin.weight, margin.bias)


def draw(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Whole numbers from 0 to 255, uint8, each as likely: r in steps of 1/256, times 256.

    Of r the direction alone matters. Numbers of 24 bits would take seven times as long to draw, a tenth of a step.
    """
    numbers = 1
    for size in shape:
        numbers *= size
    words = torch.empty(-(-numbers // 8), dtype=torch.int64, device=device)
    words.random_(-(2**63), None)
    return words.view(torch.uint8)[:numbers].view(shape)
