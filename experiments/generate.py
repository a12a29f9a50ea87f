"""Generates text from a trained model: `python -m experiments.generate --workdir=runs/small`."""

import dataclasses

import jax
from absl import flags
from absl.flags import FLAGS

from experiments.cli import program
from experiments.cli.flag_kinds import define_paths
from experiments.cli.terminal import write_aside, write_out
from experiments.cli.trained_models import load_models
from zaremba_jax.data.units import UNITS, UNK
from zaremba_jax.data.vocabulary import Vocabulary, listed
from zaremba_jax.errors import InputError
from zaremba_jax.inference.generation import Sampling, generate, unknown_id
from zaremba_jax.inference.prompts import prompt_ids

_LENGTHS = {"length": 100, "line": 10_000}  # by what ends a text
_SEPARATOR = "---"
_MOST = 2**31 - 1  # that jax counts

define_paths("workdir", [], "runs, ensembles or .safetensors files; several are averaged")
flags.DEFINE_string("prompt", "", "how each text begins")
flags.DEFINE_enum("until", "length", list(_LENGTHS), "where a text ends; line: at its line's end")
flags.DEFINE_integer(
    "length",
    None,
    "most tokens to generate after the prompt (default: 100; 10,000 with --until=line)",
    lower_bound=1,
    upper_bound=_MOST,
)
flags.DEFINE_bool("allow_unk", False, f"write {UNK}, too, which stands for all unknown words")
flags.DEFINE_float(
    "temperature", 1.0, "divides log probabilities; 0: the most probable token", lower_bound=0
)
flags.DEFINE_integer(
    "top_k", 0, "draw from this many most probable tokens; 0: from all", lower_bound=0
)
flags.DEFINE_float(
    "top_p",
    1.0,
    "draw from the fewest tokens with this much of the probability; above 0",
    upper_bound=1,
)
flags.DEFINE_integer("seed", 0, "decides what is drawn", lower_bound=0, upper_bound=2**32 - 1)
flags.DEFINE_integer(
    "samples", 1, "number of texts, generated side by side", lower_bound=1, upper_bound=_MOST
)


def main() -> None:
    """Generates texts and prints them with a line of dashes between them."""
    sampling = Sampling(temperature=FLAGS.temperature, top_k=FLAGS.top_k, top_p=FLAGS.top_p)
    models = load_models(FLAGS.workdir)
    vocabulary = models[0].vocabulary
    if not FLAGS.allow_unk:
        sampling = dataclasses.replace(sampling, never=unknown_id(vocabulary))
    until = line_end(vocabulary) if FLAGS.until == "line" else None
    context, unknown = prompt_ids(vocabulary, FLAGS.prompt, "--prompt")
    if unknown:
        noun = UNITS[vocabulary.unit].noun
        write_aside(f"{noun}s unknown to the model, read as {UNK}: {listed(unknown)}")
    key, length = jax.random.key(FLAGS.seed), FLAGS.length or _LENGTHS[FLAGS.until]
    drawn = generate(models, context, length, FLAGS.samples, sampling, key=key, until=until)
    texts = [vocabulary.detokenize([*context, *ids]).strip("\n") for ids in drawn]
    write_out(f"\n{_SEPARATOR}\n".join(texts))


def line_end(vocabulary: Vocabulary) -> int:
    """The id of the token that ends a line."""
    if vocabulary.line_end is None:
        raise InputError("--until=line: the model's text had no line ends; leave it out")
    return vocabulary.words.index(vocabulary.line_end)


if __name__ == "__main__":
    program.run(main)
