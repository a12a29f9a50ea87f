"""Shows the deep RNN in your own flax.nnx model: `python -m experiments.flax_example`.

The task is to name the first of 4 to 20 letters. Trains a model and prints its accuracy.
"""

import jax
import optax
from flax import nnx

from experiments.cli import program
from experiments.cli.terminal import write_out
from zaremba_jax.interop.flax_modules import DeepRNN

LETTERS, LONGEST, BATCH = 4, 20, 64


class Classifier(nnx.Module):
    """Reads letters and answers with logits for the first one."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(LETTERS, 16, rngs=rngs)
        # In place of two nnx.RNN(nnx.OptimizedLSTMCell(…)), with nnx.Dropout around them.
        self.rnn = DeepRNN(16, 32, layers=2, dropout=0.1, return_carry=True, rngs=rngs)
        self.answer = nnx.Linear(32, LETTERS, rngs=rngs)

    def __call__(self, letters: jax.Array, lengths: jax.Array) -> jax.Array:
        """Logits for letters [batch, time], of which the first `lengths` are each sequence."""
        carry, _ = self.rnn(self.embed(letters), seq_lengths=lengths)
        _, hidden = carry[-1]  # c and h of the last layer, after each sequence's last letter
        return self.answer(hidden)


def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws letters and lengths."""
    letter_key, length_key = jax.random.split(key)
    letters = jax.random.randint(letter_key, (BATCH, LONGEST), 0, LETTERS)
    return letters, jax.random.randint(length_key, (BATCH,), 4, LONGEST + 1)


@nnx.jit
def train_step(model: Classifier, optimizer: nnx.Optimizer, key: jax.Array) -> jax.Array:
    """Updates the model on fresh sequences; returns their loss."""
    letters, lengths = draw(key)

    def loss(model: Classifier) -> jax.Array:
        logits = model(letters, lengths)
        return optax.softmax_cross_entropy_with_integer_labels(logits, letters[:, 0]).mean()

    value, gradient = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradient)
    return value


def train(steps: int, seed: int = 0) -> Classifier:
    """A model trained on that many batches."""
    model = Classifier(nnx.Rngs(params=seed, dropout=seed + 1))
    optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param)
    for key in jax.random.split(jax.random.key(seed), steps):
        train_step(model, optimizer, key)
    model.eval()  # no dropout from here on
    return model


def accuracy(model: Classifier, seed: int = 1) -> float:
    """The share of fresh sequences that the model answers correctly."""
    letters, lengths = draw(jax.random.key(seed))
    return float((model(letters, lengths).argmax(axis=-1) == letters[:, 0]).mean())


def main() -> None:
    """Trains a model and prints its accuracy."""
    write_out(f"{accuracy(train(steps=400)):.1%} right; chance is 25%")


if __name__ == "__main__":
    program.run(main)
