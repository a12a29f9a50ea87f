"""Writes a model for other programs: `python -m experiments.export --workdir=runs/small ...`."""

from collections import Counter
from pathlib import Path

from absl import flags
from absl.flags import FLAGS
from safetensors.numpy import save

from experiments.cli import program
from experiments.cli.flag_kinds import define_path, define_paths
from experiments.cli.terminal import write_out
from experiments.cli.trained_models import load_with_estimate, single_model
from experiments.training.run_folder import Workdir
from experiments.training.written_files import write_bytes
from zaremba_jax.data.units import UNITS, UNK
from zaremba_jax.data.vocabulary import Vocabulary, listed, on_one_line
from zaremba_jax.data.vocabulary_files import read_vocabulary
from zaremba_jax.errors import InputError
from zaremba_jax.interop import model_file, model_folder
from zaremba_jax.interop.stablehlo import portable_scoring
from zaremba_jax.interop.torch_weights import (
    infer_config,
    model_from_torch,
    model_to_torch,
    read_torch_file,
)
from zaremba_jax.json_text import read_json_object
from zaremba_jax.model import Model
from zaremba_jax.regularizers import expected_masks

_TORCH_FLAGS = ("vocabulary", "unit", "line_end", "unknown", "nonlinearity")

define_paths("workdir", None, "a run, a member of an ensemble or a .safetensors file")
define_path("from_torch", None, "instead of --workdir, a .safetensors file with torch's arrays")
define_path(
    "vocabulary",
    None,
    "for --from_torch: file of the types, one a line or as JSON, in order or with their ids",
)
flags.DEFINE_enum("unit", "word", ["word", "char"], "for --from_torch: what a token is")
flags.DEFINE_string("line_end", None, "for --from_torch: the type that ends a line, such as </s>")
flags.DEFINE_string("unknown", None, "for --from_torch: the type that stands for all others")
flags.DEFINE_enum(
    "nonlinearity", None, ["tanh", "relu"], "for --from_torch, if it is an RNN: that of its layers"
)
flags.DEFINE_enum("to", "folder", ["folder", "model", "torch", "stablehlo"], "what to write")
define_path("out", "", "the folder, or the file")


def main() -> None:
    """Reads one model and writes it in another form."""
    out = Path(FLAGS.out)
    if not FLAGS.out:
        raise InputError(f"--out: names no {_kind()}; give the one to write")
    if out.exists() and (FLAGS.to != "folder" or not out.is_dir()):
        raise InputError(f"--out={out}: exists; name a new {_kind()}")
    if out.is_dir() and any(out.iterdir()) and not model_folder.is_model_folder(out):
        raise InputError(f"--out={out}: holds something other than an export; name a new folder")
    model, perplexities = model_from_flags()
    write_model_as(FLAGS.to, out, model, perplexities)
    write_out(f"{_kind()} written: {out}")
    if FLAGS.from_torch is not None:
        print_unreadable(model.vocabulary)


def print_unreadable(vocabulary: Vocabulary) -> None:
    """Says what a model cannot read that comes with a list of types from elsewhere."""
    unit = UNITS[vocabulary.unit]
    if vocabulary.line_end is None:
        read = f"read as {UNK}" if vocabulary.reads_line_ends else "left out"
        write_out(
            f"the model has no {on_one_line(unit.line_end)}: the ends of lines are {read} when it"
            f" reads a text; if a {unit.noun} means it, give --line_end"
        )
    if UNK not in vocabulary.words:
        write_out(
            f"the model has no {UNK}: it reads no text with a {unit.noun} that is not in its list;"
            f" if a {unit.noun} means it, give --unknown"
        )
    longer = [word for word in vocabulary.words if len(word) > 1 and word != UNK]
    if longer and unit.text_is_tokens:
        write_out(f"not single {unit.noun}s, and never read: {listed(Counter(longer))}")


def model_from_flags() -> tuple[Model, dict[str, float]]:
    """The one model that the flags name, and its perplexities as far as they are known."""
    if (FLAGS.workdir is None) == (FLAGS.from_torch is None):
        raise InputError("--workdir, --from_torch: give one of the two")
    if FLAGS.from_torch is not None:
        return _model_from_torch(), {}
    if given := [name for name in _TORCH_FLAGS if FLAGS[name].present]:
        raise InputError(f"--{', --'.join(given)}: only for --from_torch; leave it out")
    path = single_model(FLAGS.workdir, "workdir")
    model, estimate = load_with_estimate(path)
    return model, estimate or recorded_perplexities(path)


def _model_from_torch() -> Model:
    path = FLAGS.from_torch
    if FLAGS.vocabulary is None:
        raise InputError("--from_torch: has no words of its own; give their list, --vocabulary")
    vocabulary = read_vocabulary(FLAGS.vocabulary, FLAGS.unit)
    try:
        vocabulary = vocabulary.with_marks(FLAGS.line_end, FLAGS.unknown)
    except InputError as error:
        raise InputError(f"--vocabulary={FLAGS.vocabulary}: {error}") from None
    arrays = read_torch_file(path)
    try:
        params = model_from_torch(arrays, FLAGS.nonlinearity)
    except InputError as error:
        raise InputError(f"--from_torch={path}: {error}") from None
    config = infer_config(params, FLAGS.unit)
    return model_file.assemble(path, model_file.named_arrays(params), config, vocabulary)


def recorded_perplexities(path: Path) -> dict[str, float]:
    """Those of the run that left a model, by the text's name; none if no run did.

    A folder that was exported has kept them.
    """
    workdir = Workdir(path if path.is_dir() else path.parent)
    if path not in (workdir.path, workdir.model):
        return {}
    try:
        if model_folder.is_model_folder(workdir.path):
            return model_folder.folder_perplexities(workdir.path)
        record = read_json_object(workdir.summary)
    except (OSError, ValueError):
        return {}
    names = {"validation": "valid_perplexity", "test": "test_perplexity"}
    figures = {text: record.get(name) for text, name in names.items()}
    return {text: figure for text, figure in figures.items() if isinstance(figure, float)}


def write_model_as(form: str, out: Path, model: Model, perplexities: dict[str, float]) -> None:
    """Writes the model in a form that `--to` can name."""
    if form == "folder":
        return model_folder.save_folder(out, model, perplexities)
    if form == "model":
        out.parent.mkdir(parents=True, exist_ok=True)
        return model_file.save_model(out, model)
    content = portable_scoring(model) if form == "stablehlo" else _torch_file(model)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, content)


def _torch_file(model: Model) -> bytes:
    if expected_masks(model.config) is not None:
        raise InputError(
            "--to=torch: torch's layers have no zoneout, by whose expectation this model predicts;"
            " take another form"
        )
    return save(model_to_torch(model.params), {"format": "pt"})


def _kind() -> str:
    return "folder" if FLAGS.to == "folder" else "file"


if __name__ == "__main__":
    program.run(main)
