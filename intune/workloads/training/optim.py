"""Adagrad whose step costs what a batch touches: plain, and rowwise for embedding tables; learning rates that fall."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from intune.pipelines.errors import ConfigError
from intune.pipelines.whole import at_least


class Adagrad(Optimizer):
    """Adagrad (Duchi et al. 2011) for dense and sparse gradients: w ← w − lr · g / (√Σg² + ε).

    For dense gradients, and for sparse ones with ``rowwise=False``, the values are those of
    `torch.optim.Adagrad`. With ``rowwise=True`` a parameter with sparse gradients keeps one sum per row, of the
    row's mean squared gradient, as FBGEMM's and TorchRec's "exact rowwise Adagrad" do: for width d it needs
    1/d of the memory. Only rows with a gradient are read or written.

    Summing the gradients of repeated ids is the costly part of a sparse step. A scratch array with an entry per
    row of the table replaces the sort that `Tensor.coalesce` does, which is slow where another process keeps
    the cores busy. It is not part of the state.

    Args:
        params: parameters or groups of them.
        lr: learning rate, > 0.
        eps: ε, ≥ 0.
        rowwise: one sum per row for parameters with sparse gradients.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.01,
        *,
        eps: float = 1e-10,
        rowwise: bool = False,
    ) -> None:
        if not lr > 0:
            raise ConfigError(f"`lr` must be > 0, but {lr} was found")
        if not eps >= 0:
            raise ConfigError(f"`eps` must be ≥ 0, but {eps} was found")
        super().__init__(params, {"lr": lr, "eps": eps, "rowwise": rowwise})
        self._scratch: dict[Tensor, Tensor] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy, or one that was pickled: the scratch arrays are made anew."""
        super().__setstate__(state)
        self._scratch = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; returns what `closure` returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.is_sparse:
                    self._sparse(parameter, parameter.grad, group)
                else:
                    self._dense(parameter, parameter.grad, group)
        return loss

    def _dense(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        total = self._total(parameter, parameter.shape)
        total.addcmul_(gradient, gradient)
        parameter.addcdiv_(gradient, total.sqrt().add_(group["eps"]), value=-group["lr"])

    def _sparse(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        rows, gradient = self._rows(parameter, gradient)
        shape = torch.Size((len(parameter), 1)) if group["rowwise"] else parameter.shape
        total = self._total(parameter, shape)
        squares = gradient.square()
        if group["rowwise"]:
            squares = squares.mean(dim=1, keepdim=True)
        squares += total.index_select(0, rows)
        total.index_copy_(0, rows, squares)
        # Rows are distinct, so gather, change and put back: index_add_ does it one row at a time.
        gradient /= squares.sqrt_().add_(group["eps"])
        parameter.index_copy_(0, rows, parameter.index_select(0, rows).sub_(gradient, alpha=group["lr"]))

    def _total(self, parameter: Tensor, shape: torch.Size) -> Tensor:
        state = self.state[parameter]
        if "sum" not in state:
            state["sum"] = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
        total: Tensor = state["sum"]
        return total

    def _rows(self, parameter: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        if gradient.is_coalesced() or gradient.sparse_dim() != 1 or parameter.device.type != "cpu":
            gradient = gradient.coalesce()
            return gradient.indices()[0], gradient.values().clone()
        if parameter not in self._scratch:
            self._scratch[parameter] = torch.empty(len(parameter), dtype=torch.int64)
        return sum_rows(gradient._indices()[0], gradient._values(), self._scratch[parameter])


def sum_rows(index: Tensor, values: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the `values` of each distinct `index`, without sorting.

    Args:
        index: int64, shape ``(n,)``, each below ``len(scratch)``.
        values: shape ``(n, d)``.
        scratch: int64, an entry per possible index; its content does not matter before and is garbage after.

    Returns:
        The distinct indices, shape ``(m,)``, and their sums, shape ``(m, d)``. The order of the indices is
        arbitrary; each sum is taken in the order of `values`, so it is the same bits every time.
    """
    order = torch.arange(len(index))
    # Of the writes to one entry any may be the last: whichever it is, it names one representative.
    scratch[index] = order
    rows = index[scratch[index] == order]
    scratch[rows] = order[: len(rows)]
    sums = values.new_zeros(len(rows), values.shape[1])
    return rows, sums.index_add_(0, scratch[index], values)


def make_optimizer(
    name: str,
    *,
    tables: Iterable[Tensor],
    others: Iterable[Tensor],
    learning_rate: float,
    table_learning_rate: float | None = None,
    table_eps: float = 1e-10,
) -> Optimizer:
    """One optimiser for embedding tables and all other parameters.

    Args:
        name: ``"sgd"``, ``"adagrad"``, ``"rowwise-adagrad"`` or ``"adam"``.
        tables: parameters whose gradients may be sparse (with Adam they must not be).
        others: the others.
        learning_rate: of all, or of the others only where there is a `table_learning_rate`.
        table_learning_rate: of the tables.
        table_eps: ε of the tables; not used by SGD and Adam.

    Raises:
        ConfigError: another name, or a number that makes no sense.
    """
    groups: list[dict[str, Any]] = [
        {"params": list(tables), "lr": learning_rate if table_learning_rate is None else table_learning_rate},
        {"params": list(others), "lr": learning_rate},
    ]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate)
    if name in ("adagrad", "rowwise-adagrad"):
        groups[0]["eps"] = table_eps
        return Adagrad(groups, lr=learning_rate, rowwise=name == "rowwise-adagrad")
    if name == "adam":
        return torch.optim.Adam(groups, lr=learning_rate)
    raise ConfigError(f"`optimizer`={name!r} is unknown; use 'sgd', 'adagrad', 'rowwise-adagrad' or 'adam'")


def decay_linearly(optimizer: Optimizer, steps: int) -> None:
    """Let all learning rates fall in a straight line from now on, to zero after `steps` steps.

    With step sizes that stay what they are, the last few thousand rows move the parameters as far as any others did;
    with these, the noise that they bring in fades out. How many steps are done is kept in the optimiser's own groups,
    so that a run that is resumed from a state dict goes on at the rate that it left off with.

    Raises:
        ConfigError: there is less than one step.
    """
    at_least("steps", steps, 1)
    for group in optimizer.param_groups:
        group.update(first_lr=group["lr"], steps_done=0, steps=steps)
    optimizer.register_step_pre_hook(_next_rate)


def _next_rate(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["first_lr"] * max(0.0, 1 - group["steps_done"] / group["steps"])
        group["steps_done"] += 1


class ClippedAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter 2019) that first shortens the whole gradient to the norm `clip`, if it is longer."""

    def __init__(self, parameters: Any, *, lr: float, weight_decay: float, clip: float) -> None:
        if not clip > 0:
            raise ConfigError(f"`clip` must be > 0, but {clip} was found")
        if not (lr > 0 and weight_decay >= 0):
            raise ConfigError(
                f"`learning_rate` must be > 0 and `weight_decay` ≥ 0, but {lr} and {weight_decay} were found"
            )
        super().__init__(parameters, lr=lr, weight_decay=weight_decay)
        self._clip = clip

    def step(self, closure: Any = None) -> Any:
        """Shorten the gradient and update."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self._clip)
        return super().step(closure)
