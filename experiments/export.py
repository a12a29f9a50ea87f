"""Writes a model for other programs: `python -m experiments.export --workdir=runs/small ...`."""

from pathlib import Path

from absl import flags
from safetensors.numpy import save

from experiments.cli import program
from experiments.cli.flag_kinds import define_path, define_paths
from experiments.cli.program import FLAGS
from experiments.cli.terminal import write_out
from experiments.cli.trained_models import load_models
from experiments.training.run_folder import write_bytes
from zaremba_jax.data.units import EOS, UNK
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.errors import InputError
from zaremba_jax.interop import model_file
from zaremba_jax.interop.stablehlo import portable_scoring
from zaremba_jax.interop.torch_weights import infer_config, model_from_torch, model_to_torch
from zaremba_jax.model import Model
from zaremba_jax.regularizers import expected_masks

define_paths("workdir", None, "a finished run, a member of an ensemble or a .safetensors file")
define_path("from_torch", None, "instead of --workdir, a .safetensors file with torch's arrays")
define_path(
    "vocabulary", None, "for --from_torch: JSON file of the words, in order or with their ids"
)
flags.DEFINE_string("line_end", EOS, "for --from_torch: the word that ends a line, such as </s>")
flags.DEFINE_string("unknown", UNK, "for --from_torch: the word that stands for all others")
flags.DEFINE_enum("to", "folder", ["folder", "model", "torch", "stablehlo"], "what to write")
define_path("out", "", "the folder, or the file")


def main() -> None:
    """Reads one model and writes it in another form."""
    out = Path(FLAGS.out)
    if not FLAGS.out:
        raise InputError(f"--out: names no {_kind()}; give the one to write")
    if out.exists() and (FLAGS.to != "folder" or not out.is_dir()):
        raise InputError(f"--out={out}: exists; name a new {_kind()}")
    if out.is_dir() and any(out.iterdir()) and not model_file.is_model_folder(out):
        raise InputError(f"--out={out}: holds something other than an export; name a new folder")
    model = model_from_flags()
    write_model_as(FLAGS.to, out, model)
    write_out(f"{_kind()} written: {out}")
    if FLAGS.from_torch is not None:
        print_missing_marks(model.vocabulary)


def print_missing_marks(vocabulary: Vocabulary) -> None:
    """Says what a model cannot read that comes with a word list from elsewhere."""
    missing = {
        EOS: ("line_end", "the ends of lines are left out when it reads a text"),
        UNK: ("unknown", "it reads no text with a word that is not in its list"),
    }
    for mark, (flag, consequence) in missing.items():
        if mark not in vocabulary.words:
            write_out(f"the model has no {mark}: {consequence}; if a word means it, give --{flag}")


def model_from_flags() -> Model:
    """The one model that the flags name."""
    if (FLAGS.workdir is None) == (FLAGS.from_torch is None):
        raise InputError("--workdir, --from_torch: give one of the two")
    if (FLAGS.from_torch is None) != (FLAGS.vocabulary is None):
        raise InputError("--vocabulary: goes with --from_torch, which has no words of its own")
    if FLAGS.from_torch is None and (FLAGS["line_end"].present or FLAGS["unknown"].present):
        raise InputError("--line_end, --unknown: go with --from_torch, like --vocabulary")
    if FLAGS.from_torch is None:
        models = load_models(FLAGS.workdir)
        if len(models) > 1:
            raise InputError(
                f"--workdir={','.join(FLAGS.workdir)}: has {len(models)} models; name one file of"
                " members/"
            )
        return models[0]
    vocabulary = model_file.read_vocabulary(FLAGS.vocabulary)
    try:
        vocabulary = vocabulary.with_marks(FLAGS.line_end, FLAGS.unknown)
    except InputError as error:
        raise InputError(f"--vocabulary={FLAGS.vocabulary}: {error}") from None
    arrays, _ = model_file.read_safetensors(FLAGS.from_torch)
    try:
        params = model_from_torch(arrays)
    except InputError as error:
        raise InputError(f"--from_torch={FLAGS.from_torch}: {error}") from None
    return model_file.assemble(
        FLAGS.from_torch, model_file.named_arrays(params), infer_config(params), vocabulary
    )


def write_model_as(form: str, out: Path, model: Model) -> None:
    """Writes the model in a form that `--to` can name."""
    if form == "folder":
        return model_file.save_folder(out, model)
    if form == "model":
        out.parent.mkdir(parents=True, exist_ok=True)
        return model_file.save_model(out, model)
    content = portable_scoring(model) if form == "stablehlo" else _torch_file(model)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, content)


def _torch_file(model: Model) -> bytes:
    if expected_masks(model.config) is not None:
        raise InputError(
            "--to=torch: torch.nn.LSTM has no zoneout, by whose expectation this model predicts;"
            " take another form"
        )
    return save(model_to_torch(model.params), {"format": "pt"})


def _kind() -> str:
    return "folder" if FLAGS.to == "folder" else "file"


if __name__ == "__main__":
    program.run(main)
