"""Generates text from a trained model: `python -m experiments.generate --workdir=runs/small`."""

import sys

import jax
from absl import flags

from experiments.cli import program
from experiments.cli.flag_kinds import define_paths
from experiments.cli.program import FLAGS
from experiments.cli.terminal import as_shown, write_out
from experiments.cli.trained_models import load_models
from zaremba_jax.data.units import UNITS, UNK
from zaremba_jax.data.vocabulary import listed
from zaremba_jax.inference.generation import Sampling, generate
from zaremba_jax.inference.prompts import prompt_ids

define_paths("workdir", [], "finished runs, ensembles or .safetensors files; several are averaged")
flags.DEFINE_string("prompt", "", "how each text begins")
flags.DEFINE_integer("length", 100, "tokens to generate after the prompt", lower_bound=1)
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
flags.DEFINE_integer("samples", 1, "number of texts, generated side by side", lower_bound=1)

_SEPARATOR = "---"


def main() -> None:
    """Generates texts and prints them with a line of dashes between them."""
    sampling = Sampling(temperature=FLAGS.temperature, top_k=FLAGS.top_k, top_p=FLAGS.top_p)
    models = load_models(FLAGS.workdir)
    vocabulary = models[0].vocabulary
    context, unknown = prompt_ids(vocabulary, FLAGS.prompt, "--prompt")
    if unknown:
        noun = UNITS[vocabulary.unit].noun
        line = f"{noun}s unknown to the model, read as {UNK}: {listed(unknown)}"
        print(as_shown(line, sys.stderr), file=sys.stderr)
    key = jax.random.key(FLAGS.seed)
    drawn = generate(models, context, FLAGS.length, FLAGS.samples, sampling, key=key)
    texts = [vocabulary.detokenize([*context, *ids]).strip("\n") for ids in drawn]
    write_out(f"\n{_SEPARATOR}\n".join(texts))


if __name__ == "__main__":
    program.run(main)
