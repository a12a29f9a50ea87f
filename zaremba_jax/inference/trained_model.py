"""A trained model that takes and returns text."""

from pathlib import Path
from typing import NamedTuple

import jax

from zaremba_jax import model
from zaremba_jax.config import settings
from zaremba_jax.errors import InputError, MissingFileError
from zaremba_jax.evaluate import perplexity, text_nll
from zaremba_jax.inference.generation import Sampling, generate, unknown_id
from zaremba_jax.inference.prompts import prompt_ids
from zaremba_jax.interop.model_file import load_model, save_model
from zaremba_jax.interop.model_folder import FOLDER_MODEL, is_model_folder, load_folder
from zaremba_jax.limits import whole_number

_CHECKPOINTS, _SUMMARY = "checkpoints", "summary.json"  # of a run; it writes the latter at its end


class Score(NamedTuple):
    """How probable a model finds a text.

    Attributes:
      log_probability: its natural logarithm.
      tokens: how many tokens it is the probability of.
      unknown: how many of them were read as `<unk>`.
    """

    log_probability: float
    tokens: int
    unknown: int

    @property
    def perplexity(self) -> float:
        """exp(nats per token); inf if it exceeds what a float holds."""
        return perplexity(-self.log_probability / self.tokens)


class Model(model.Model):
    """A `model.Model` with methods for text; `zaremba_jax.Model` is this class."""

    @classmethod
    def load(cls, path: str | Path) -> "Model":
        """Reads a model's file, the folder of a finished run, or an exported folder.

        Raises:
          InputError: the run is not finished: the model there would be that of fewer epochs.
          MissingFileError, InputError: as for `load_model` and `load_folder`.
        """
        path = Path(path)
        if path.is_dir() and not (path / FOLDER_MODEL).exists():
            raise MissingFileError(
                f"{path}: has no {FOLDER_MODEL}, which a run of one model leaves at its end; name"
                " another folder, one in `members` if there are many, or the file of a model"
            )
        if (path / _CHECKPOINTS).is_dir() and not (path / _SUMMARY).exists():
            raise InputError(
                f"{path}: is not finished, and its {FOLDER_MODEL} is of fewer epochs; give the"
                " run's command again, or write its last model with `experiments.export`"
            )
        if is_model_folder(path):
            read = load_folder(path)
        else:
            read = load_model(path / FOLDER_MODEL if path.is_dir() else path)
        return cls(read.params, read.config, read.vocabulary)

    def save(self, path: str | Path) -> None:
        """Writes the model as one file.

        Raises:
          InputError, OSError: as for `save_model`.
        """
        save_model(path, self)

    def score(self, text: str) -> Score:
        """Scores a text, read from the zero state as the beginning of a line.

        Each line end in it is a token. If the vocabulary has no line ends, nothing predicts the
        first token, which does not count.

        Raises:
          InputError: there is nothing to predict, a token is unknown to a vocabulary without
            `<unk>`, or as for `check_ids`.
        """
        if not text:
            raise InputError("text='': has nothing to predict; give at least one token")
        ids, _ = prompt_ids(self.vocabulary, text, "text")
        nll = text_nll(self, ids)
        scored = self.vocabulary.tokenize(text)[-len(nll) :]
        unknown = sum(self.vocabulary.unknown(scored).values())
        return Score(-float(nll.sum(dtype=float)), len(nll), unknown)

    def generate(
        self,
        prompt: str = "",
        length: int = 100,
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
    ) -> str:
        """The prompt, which begins a line, and `length` more tokens.

        Without `sampling`, as predicted, but `<unk>` is never drawn. Line ends before the first and
        after the last other token are left out.

        Raises:
          InputError: the seed is not that of a configuration, or as for `generation.generate` and
            `prompts.prompt_ids`.
        """
        whole_number("seed", seed, **settings()["seed"].limits)
        sampling = sampling or Sampling(never=unknown_id(self.vocabulary))
        context, _ = prompt_ids(self.vocabulary, prompt)
        (drawn,) = generate([self], context, length, sampling=sampling, key=jax.random.key(seed))
        return self.vocabulary.detokenize([*context, *drawn]).strip("\n")
