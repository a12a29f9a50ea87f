"""The page that an exported model brings along, as the Hugging Face hub shows it."""

import math
from collections.abc import Mapping

from zaremba_jax.config import to_dict
from zaremba_jax.data.units import UNITS, Unit
from zaremba_jax.model import Model, count_params

_CARD = """\
---
library_name: zaremba_jax
pipeline_tag: text-generation
---

# {name}

A language model of {parameters:,} parameters over {types:,} {noun}s, trained on
{corpus}: a deep RNN as of Zaremba, Sutskever & Vinyals,
[*Recurrent Neural Network Regularization*](https://arxiv.org/abs/1409.2329) (2014).

{results}
## How to load it

With `zaremba_jax` installed, and `FOLDER` the path of this folder:

```python
import zaremba_jax as zj

model = zj.Model.load("FOLDER")
text = model.generate(length=30)
print(text, model.score(text).perplexity)
```

`model.safetensors` has the weights, `vocab.json` the id of each {noun}, `config.json` the settings.

## Settings

| setting | value |
|---|---|
{settings}
"""


def model_card(model: Model, perplexities: Mapping[str, float]) -> str:
    """The card, as Markdown: settings, corpus, perplexities by the text's name, how to load."""
    config = model.config
    unit = UNITS[model.vocabulary.unit]
    return _CARD.format(
        name=config.name,
        parameters=count_params(model.params),
        types=len(model.vocabulary),
        noun=unit.noun,
        corpus="a text of its user's" if config.corpus == "files" else f"`{config.corpus}`",
        results=_results(perplexities, unit) if perplexities else "Its perplexity is not known.\n",
        settings="\n".join(f"| `{name}` | {value} |" for name, value in to_dict(config).items()),
    )


def _results(perplexities: Mapping[str, float], unit: Unit) -> str:
    """The table of perplexities, with bits per token where a text's unit is reported in them."""
    rows = [("text", "perplexity", f"bits per {unit.noun}"), ("---", "---", "---")]
    rows += [(text, f"{x:.1f}", f"{math.log2(x):.3f}") for text, x in perplexities.items()]
    columns = 3 if unit.reported_in_bits else 2
    return "".join(f"| {' | '.join(row[:columns])} |\n" for row in rows)
