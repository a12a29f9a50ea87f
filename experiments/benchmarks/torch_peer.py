"""The same training step in PyTorch: `torch.nn.LSTM`, on a GPU by cuDNN."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.training.environment import is_installed
from experiments.training.turns import Turn
from zaremba_jax.config import Config
from zaremba_jax.data.published import PTB_VOCABULARY_SIZE
from zaremba_jax.errors import InputError
from zaremba_jax.evaluate import TOKENS_AT_ONCE


def check_torch(_: Config) -> None:
    """Refuses a contender that needs torch if it is not installed."""
    if not is_installed("torch"):
        raise InputError(
            "--peers=torch: torch is not installed; pip install torch (without a GPU, from its"
            " index for CPUs: --index-url https://download.pytorch.org/whl/cpu), or leave it out"
        )


def build_model(config: Config) -> Any:
    """A `torch.nn.Module` with random parameters, on a GPU if torch sees one.

    From a window and a state (None for zeros) it computes the loss, summed over time and
    averaged over the batch, and the next state. Its parameters have the names that
    `torch_weights.model_to_torch` gives them.
    """
    import torch  # pyright: ignore[reportMissingImports]

    size, rate = config.model.hidden_size, config.regularizers.dropout

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.Embedding(PTB_VOCABULARY_SIZE, size)
            self.rnn = torch.nn.LSTM(size, size, config.model.layers, dropout=rate)
            self.decoder = torch.nn.Linear(size, PTB_VOCABULARY_SIZE)
            self.dropout = torch.nn.Dropout(rate)

        def forward(self, window, state):
            hidden, state = self.rnn(self.dropout(self.encoder(window[:-1])), state)
            logits = self.decoder(self.dropout(hidden)).flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(
                logits.float(), window[1:].flatten(), reduction="sum"
            )
            return loss / window.shape[1], state

    torch.set_float32_matmul_precision("high")  # TF32 on NVIDIA, as jax multiplies by default
    torch.manual_seed(config.seed)
    model, scale = Model(), config.model.init_scale
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -scale, scale)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def refusals_of_torch() -> Iterator[None]:
    """Makes `InputError` of torch's `RuntimeError`, its only word for what a device refuses.

    For instance memory, or on some CPUs an LSTM in bfloat16.
    """
    try:
        yield
    except RuntimeError as error:
        message = str(error).strip().partition("\n")[0][:200]
        raise InputError(f"torch cannot run this here ({message})") from None


@refusals_of_torch()
def build_torch(config: Config, windows: np.ndarray, compiled: bool = False) -> Turn:
    """`torch.nn.LSTM` with its own dropout between layers; bfloat16 by autocast.

    Builder and turn raise `InputError` if torch cannot run this here. `compiled` sends the forward
    pass through `torch.compile`.
    """
    import torch  # pyright: ignore[reportMissingImports]

    model = build_model(config)
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.SGD(model.parameters(), config.train.learning_rate, fused=True)
    device = model.decoder.weight.device
    text = torch.as_tensor(windows, dtype=torch.long, device=device)
    shape = config.model.layers, config.train.batch_size, config.model.hidden_size
    state = (torch.zeros(shape, device=device),) * 2
    loss_of = _in_precision(config, forward, device)

    def train() -> None:
        nonlocal state
        for window in text:
            loss, new_state = loss_of(window, state)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.clip_norm)
            optimizer.step()
            state = tuple(part.detach() for part in new_state)
        if device.type == "cuda":
            torch.cuda.synchronize()

    loss_of(text[0], state)
    return refusals_of_torch()(train)


@refusals_of_torch()
def build_torch_reader(config: Config, ids: np.ndarray) -> Turn:
    """The same model, which reads a text as one stream, without gradients; errors as above."""
    import torch  # pyright: ignore[reportMissingImports]

    model = build_model(config).eval()
    device = model.decoder.weight.device
    text = torch.as_tensor(ids, device=device)[:, None]
    loss_of = _in_precision(config, model, device)

    @torch.no_grad()
    def read() -> None:
        state = None
        for start in range(0, len(text) - 1, TOKENS_AT_ONCE):
            _, state = loss_of(text[start : start + TOKENS_AT_ONCE + 1], state)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return refusals_of_torch()(read)


def _in_precision(config: Config, forward: Any, device: Any) -> Any:
    """The forward pass, by autocast if its products are to be of bfloat16."""
    import torch  # pyright: ignore[reportMissingImports]

    if config.compute.precision == "float32":
        return forward
    return torch.autocast(device.type, torch.bfloat16)(forward)
