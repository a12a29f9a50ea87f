"""What a model writes after each epoch, to watch it learn."""

import jax

from experiments.training.run import Run, position
from zaremba_jax.data.units import UNITS
from zaremba_jax.inference.generation import Sampling, generate, unknown_id

_WORDS, _LETTERS = 16, 72  # about a line of a terminal
_OWN_KEY = 0x73616D70


def sample_lines(run: Run, count: int) -> list[str]:
    """Lines by the model that the run would end with; of many, by the first live one.

    None has `<unk>`. Each begins after a line end, or after the validation text's first token if
    there is none. The keys are none of training's, so that a run is the same with and without.
    """
    model, (epoch, _) = run.model(), position(run)
    words = model.vocabulary
    start = run.corpus.valid[:1] if words.line_end is None else words.encode([words.line_end])
    length = _LETTERS if UNITS[words.unit].reported_in_bits else _WORDS
    key = jax.random.fold_in(jax.random.key(run.config.seed, impl="threefry2x32"), _OWN_KEY)
    known, key = Sampling(never=unknown_id(words)), jax.random.fold_in(key, epoch)
    drawn = generate([model], start, length, count, known, key=key)
    lines = (words.detokenize(ids).strip("\n").partition("\n")[0] for ids in drawn)
    return [f"“{line}”" for line in lines]
