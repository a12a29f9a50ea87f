"""How a run diverges: what is wrong with losses and parameters, and the error that ends it."""

from collections.abc import Mapping

import numpy as np

from experiments.endings.errors import ProgramEndError

_REMEDY = (
    "the checkpoints before it are kept; try a lower --learning_rate or --clip_norm, in another"
    " --workdir"
)


class NonFiniteLossError(ProgramEndError):
    """A loss, a parameter or the validation perplexity of every model became infinite or NaN.

    `reasons` say why each model diverged, by seed.
    """

    def __init__(self, problem: str, reasons: Mapping[int, str]):
        super().__init__(f"{problem}; {_REMEDY}")
        self.reasons = reasons


def first_problem(
    nll: np.ndarray, params_finite: bool, first_step: int, windows_per_epoch: int
) -> str | None:
    """What is wrong with the losses of some windows or the parameters after them, and where.

    `nll` are mean nats per token of each window; `first_step` windows came before these.
    """
    with np.errstate(over="ignore"):
        finite = np.isfinite(np.exp(nll))
    if not finite.all():
        bad = int(np.argmin(finite))
        problem = f"the loss became {nll[bad]:.4g}"
    elif not params_finite:
        bad, problem = len(nll) - 1, "a parameter became infinite or NaN"
    else:
        return None
    epoch, window = divmod(first_step + bad, windows_per_epoch)
    return f"{problem} at step {first_step + bad + 1} (epoch {epoch + 1}, window {window + 1})"
