"""The Q-network: one small encoder shared by all stages, one head shared by all candidates.

`QNetwork` learns (torch); `forward` gives the same values from plain arrays (NumPy), so that deciding on a live
job needs no torch and takes no threads from the pipeline. Works for any number of stages and candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from intune.agents.rehearsal import JOB_WIDTH, OPTIONS, PER_CANDIDATE, PER_STAGE, STAGE_WIDTH, Rehearsal

STAGE_HIDDEN = 32
HIDDEN = 64


class QNetwork(nn.Module):
    """Values of N jobs' candidates: value of the state plus advantage of each candidate (duelling; Wang et al.
    2016, arXiv 1511.06581, equation 9).

    A stage's features and what a candidate changes there are encoded together; mean and maximum over the stages
    that exist make the job's summary, whatever their number.
    """

    def __init__(self, *, stage_hidden: int = STAGE_HIDDEN, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.stage_in = nn.Linear(STAGE_WIDTH + PER_STAGE, stage_hidden)
        self.stage_out = nn.Linear(stage_hidden, stage_hidden)
        self.head_in = nn.Linear(2 * stage_hidden + JOB_WIDTH + PER_CANDIDATE + OPTIONS, hidden)
        self.head_hidden = nn.Linear(hidden, hidden)
        self.advantage = nn.Linear(hidden, 1)
        self.value = nn.Linear(hidden, 1)

    def forward(self, stage: Tensor, job: Tensor, moves: Tensor, options: Tensor, present: Tensor) -> Tensor:
        """``[N, K]`` values; see `Rehearsal` for the arguments."""
        count, candidates, stages, _ = moves.shape
        wide = stage[:, None].expand(count, candidates, stages, STAGE_WIDTH)
        encoded = torch.relu(self.stage_in(torch.cat([wide, moves], dim=-1)))
        encoded = torch.relu(self.stage_out(encoded)) * present[:, None, :, None]
        mean = encoded.sum(dim=2) / present.sum(dim=1).clamp(min=1.0)[:, None, None]
        which = torch.eye(OPTIONS, dtype=job.dtype)[:candidates].expand(count, candidates, OPTIONS)
        joined = torch.cat(
            [mean, encoded.amax(dim=2), job[:, None].expand(count, candidates, JOB_WIDTH), options, which],
            dim=-1,
        )
        hidden = torch.relu(self.head_in(joined))
        hidden = torch.relu(self.head_hidden(hidden))
        advantage = self.advantage(hidden)[..., 0]
        value = self.value(hidden).mean(dim=1)
        worth: Tensor = value + advantage - advantage.mean(dim=1, keepdim=True)
        return worth

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Parameters by name, as NumPy arrays."""
        return {name: value.detach().numpy().copy() for name, value in self.state_dict().items()}

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> QNetwork:
        """A network with these parameters. Draws no random numbers: those of the process are the trainer's."""
        with torch.device("meta"):
            made = cls()
        state = {name: torch.tensor(np.asarray(value)) for name, value in arrays.items()}
        made.load_state_dict(state, assign=True)
        return made

    def load(self, arrays: Mapping[str, Any]) -> None:
        """Take parameters from arrays."""
        self.load_state_dict({name: torch.as_tensor(np.asarray(value)) for name, value in arrays.items()})


def tensors(seen: Rehearsal) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A rehearsal as the network's arguments."""
    return (
        torch.as_tensor(seen.stage),
        torch.as_tensor(seen.job),
        torch.as_tensor(seen.moves),
        torch.as_tensor(seen.options),
        torch.as_tensor(seen.present.astype(np.float32)),
    )


def forward(arrays: Mapping[str, NDArray[np.float32]], seen: Rehearsal) -> NDArray[np.float32]:
    """``[N, K]`` values of `QNetwork` with the parameters `arrays`, in NumPy."""
    count, candidates = seen.moves.shape[:2]
    present = seen.present.astype(np.float32)
    # The stage's own part of the first layer is the same for all candidates.
    weight, bias = arrays["stage_in.weight"], arrays["stage_in.bias"]
    own = seen.stage @ weight[:, :STAGE_WIDTH].T + bias
    encoded = np.maximum(own[:, None] + seen.moves @ weight[:, STAGE_WIDTH:].T, 0.0)
    encoded = _layer(arrays, "stage_out", encoded) * present[:, None, :, None]
    mean = encoded.sum(axis=2) / np.maximum(present.sum(axis=1), 1.0)[:, None, None]
    joined = np.concatenate(
        [
            mean,
            encoded.max(axis=2),
            np.broadcast_to(seen.job[:, None], (count, candidates, JOB_WIDTH)),
            seen.options,
            np.broadcast_to(np.eye(OPTIONS, dtype=np.float32)[:candidates], (count, candidates, OPTIONS)),
        ],
        axis=-1,
    )
    hidden = _layer(arrays, "head_hidden", _layer(arrays, "head_in", joined))
    advantage = (hidden @ arrays["advantage.weight"].T + arrays["advantage.bias"])[..., 0]
    value = (hidden @ arrays["value.weight"].T + arrays["value.bias"]).mean(axis=1)
    result: NDArray[np.float32] = value + advantage - advantage.mean(axis=1, keepdims=True)
    return result


def _layer(arrays: Mapping[str, NDArray[np.float32]], name: str, x: Any) -> Any:
    return np.maximum(x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"], 0.0)
