# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The paper, executed
#
# Zaremba, Sutskever & Vinyals, [*Recurrent Neural Network Regularization*](https://arxiv.org/abs/1409.2329):
# its equations beside the code that computes them, how often its dropout corrupts what a network
# remembers, and what that does to a memory and to a language model. Three exercises have their
# solutions folded away. No accelerator is needed.

# %% [markdown]
# The sizes of the two comparisons, which take a few minutes on two CPU cores.

# %% tags=["parameters"]
TRAIN_TOKENS = 8000
HIDDEN_SIZE = 64
EPOCHS = 10
SEEDS = 2
LONGEST_LAG = 100
MEMORY_STEPS = 400

# %% [markdown]
# The next three cells are for Colab: skip them in a clone of the repository. `SOURCE` is where
# zaremba_jax is: the address of its repository, as `git clone` takes it, or the path of a zip of it
# that you have uploaded, such as `/content/zaremba_jax.zip`.

# %% tags=["colab"]
SOURCE = ""  # @param {type:"string"}

# %% tags=["colab"]
import shutil
import subprocess
from pathlib import Path

CLONE = Path("/content/zaremba_jax")
if not SOURCE:
    raise ValueError("SOURCE is empty: enter an address or a zip; in a clone, skip Colab's cells")
if not CLONE.exists() and SOURCE.endswith(".zip"):
    unpacked = CLONE.with_name("unpacked")
    shutil.unpack_archive(SOURCE, unpacked)
    (setup,) = unpacked.rglob("setup.py")
    shutil.move(setup.parent, CLONE)
elif not CLONE.exists():
    subprocess.run(["git", "clone", "-q", SOURCE, CLONE], check=True)
# %cd {CLONE}

# %% tags=["colab"]
# !pip install -q -e ".[plots]"

# %% [markdown]
# In a clone, Jupyter starts in the folder of the notebook; what it imports is at the root.

# %%
import os
from pathlib import Path

if not Path("setup.py").exists():
    os.chdir("../..")

# %%
import dataclasses
import inspect

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Code, Markdown

# %% [markdown]
# ## The cell: six equations
#
# Layer $l$, time $t$; $T$ is an affine map, $D$ is dropout, $\otimes$ the elementwise product,
# $u$ the paper's $g$.
#
# $$\begin{aligned}
# f &= \sigma(T_1(D(h^{l-1}_t), h^l_{t-1})) & o &= \sigma(T_3(D(h^{l-1}_t), h^l_{t-1})) \\
# i &= \sigma(T_2(D(h^{l-1}_t), h^l_{t-1})) & u &= \tanh(T_4(D(h^{l-1}_t), h^l_{t-1})) \\
# c^l_t &= f \otimes c^l_{t-1} + i \otimes u & h^l_t &= o \otimes \tanh(c^l_t)
# \end{aligned}$$
#
# The four maps lie side by side in one matrix for $D(h^{l-1}_t)$ and one for $h^l_{t-1}$. In the
# code below, `projected` and `recurrent` are the two products.

# %%
from zaremba_jax import cells

Code("\n\n".join(map(inspect.getsource, (cells.lstm, cells.lstm_gates))), language="python")

# %% [markdown]
# One step of these equations in NumPy matches the library's.

# %%
from zaremba_jax.array_types import LayerParams, LSTMState

rng = np.random.default_rng(0)
x, h, c = (rng.normal(size=(1, 3)).astype(np.float32) for _ in range(3))
W_x, W_h = (rng.normal(size=(3, 12)).astype(np.float32) for _ in range(2))
b = rng.normal(size=12).astype(np.float32)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


f, i, o, u = np.split(x @ W_x + h @ W_h + b, 4, axis=1)
c_t = sigmoid(f) * c + sigmoid(i) * np.tanh(u)
h_t = sigmoid(o) * np.tanh(c_t)

# %%
layer = LayerParams(*map(jnp.asarray, (W_x, W_h, b)))
state = LSTMState(hidden=jnp.asarray(h), cell=jnp.asarray(c))
after = cells.step(layer, cells.project_inputs(layer, jnp.asarray(x)), state)
np.testing.assert_allclose(after.hidden, h_t, rtol=1e-5)
np.testing.assert_allclose(after.cell, c_t, rtol=1e-5)

# %% [markdown]
# ## The network: D on the inputs of layers, never through time
#
# The code counts from 0: `masks.inputs[0]` is $D$ at the input of layer 1. $h^l_{t-1}$ passes
# untouched. The last $D$ is not in `deep_rnn` but after it, in `unroll`, before the softmax.

# %%
import textwrap

from zaremba_jax import model, rnn

network = rnn.deep_rnn, model.Predictor.unroll
bodies = [textwrap.dedent(inspect.getsource(f).split('"""')[-1]) for f in network]
Code("# deep_rnn" + bodies[0] + "\n# unroll" + bodies[1], language="python")

# %% [markdown]
# A mask keeps a unit with probability $1 - p$, where $p$ is the rate of dropout, and scales it by
# $1 / (1 - p)$. With $L$ layers there are $L + 1$ of them: one for each layer's input, and one for
# the last output. Below, the first of them has a row for each time step: every step draws its own.

# %%
from zaremba_jax.config import override
from zaremba_jax.presets import QUICK
from zaremba_jax.regularizers import active_rates, sample_masks

config = override(QUICK, layers=2, hidden_size=4, dropout=0.5)
tokens = jnp.zeros((3, 1), jnp.int32)
rates = active_rates(config.regularizers)
masks = sample_masks(config, rates, tokens, 1, key=jax.random.key(0))
len(masks.inputs) + 1, masks.inputs[0][:, 0]

# %% [markdown]
# ## L + 1 times, however long ago
#
# Figure 3 of the paper: what was read $k$ steps ago passes $L + 1$ masks on its way to the output.
# Under ordinary dropout, which acts on $h^l_{t-1}$ too, it passes one more at every step. Both are
# counted here from the masks themselves: each is replaced by the constant 1.25, and the derivative
# of the output with respect to that input grows by that factor for each mask on the way.

# %%
from experiments.ablations.corruption import count_masks

size = {
    "cell": "tanh",
    "layers": 2,
    "hidden_size": 16,
    "init_scale": 0.4,
    "unroll": LONGEST_LAG + 1,
}
papers = override(QUICK, **size, dropout=0.5)
ordinary = override(papers, hidden_dropout=0.5)

plt.plot(count_masks(ordinary), label="ordinary dropout")
plt.plot(count_masks(papers), label="the paper's: L + 1 = 3")
plt.xlabel("steps ago")
plt.ylabel("masks on the way")
plt.legend()
plt.show()

# %% [markdown]
# **Exercise 1.** Now only $h^l_{t-1}$ is dropped: at each step, in both layers, and nothing else.
# How many masks are there on the way of $k$ steps? Think first, then count.

# %% [markdown]
# <details><summary>Solution</summary>
#
# One at every step through time, in whichever layer the way goes, and none on the way up: $k$.
#
# ```python
# recurrent = override(QUICK, **size, dropout=0.0, hidden_dropout=0.5)
# counts = count_masks(recurrent)
# np.testing.assert_allclose(counts, np.arange(LONGEST_LAG + 1), atol=0.01)
# ```
#
# </details>

# %%
# Yours.

# %% [markdown]
# ## What dropout does to a memory
#
# The paper's argument, as a task: name a symbol $k$ steps after it was shown, through a noise of
# other symbols. The network is a plain $\tanh$ layer, which keeps all that it remembers in $h$. It
# is trained without dropout, with ordinary dropout and with the paper's, both at a rate of 0.5, and
# tested with dropout off.

# %%
from experiments.ablations.memory import SYMBOLS, compare_memories

task = {"rate": 0.5, "lags": LONGEST_LAG, "steps": MEMORY_STEPS, "seeds": SEEDS}
memory = compare_memories("tanh", **task, on_progress=print)

# %%
steps_ago = [np.sqrt(first * last) for first, last in memory["bins"]]
styles = ("C0o-", "C1s-", "C2^:")
for (name, record), style in zip(memory["methods"].items(), styles, strict=True):
    of_seeds = np.transpose(record["accuracy"])  # a line per seed
    plt.semilogx(steps_ago, of_seeds, style, label=[name] + [None] * (SEEDS - 1))
plt.axhline(1 / SYMBOLS, color="gray", label="chance")
plt.gca().xaxis.set_major_formatter("{x:g}")
plt.ylim(0, 1.04)
plt.xlabel("steps since the symbol")
plt.ylabel("share of symbols named correctly")
plt.legend()
plt.show()

# %% [markdown]
# Trained with dropout on $h^l_{t-1}$, the network has lost the symbol of some sequences after a few
# steps; with the paper's dropout, at the same rate, of none.
#
# **Exercise 2.** Does an LSTM lose it as well? Find out from the six equations which of its two
# states ordinary dropout touches, then train one.

# %% [markdown]
# <details><summary>Solution</summary>
#
# No. It drops $h_{t-1}$ where it enters the gates, and never $c$. What is written into $c$ stays
# there, as long as $f$ is near 1 and $i$ near 0, which the gates learn in spite of the noise.
#
# ```python
# of_lstm = compare_memories("lstm", **task, on_progress=print)
# for name, record in of_lstm["methods"].items():
#     print(f"{name}: {np.mean(record['accuracy'], axis=0)[-1]:.2f} after the longest lags")
# ```
#
# </details>

# %%
# Yours.

# %% [markdown]
# ## Training: section 4.1
#
# The training text is cut into 20 streams, which are read side by side. Each step of training reads
# a window, the paper's minibatch: the next 35 words of every stream (20 words for the small model),
# from the state after the window before. Its loss is the sum over the time steps of the mean over
# the streams, in nats. With a mean over the 35 steps as well, the same training would need a
# learning rate 35 times as high and clip at a norm 35 times as low. In this check, each of 10 words
# is equally probable.

# %%
from zaremba_jax.train import window_loss

params = model.init_params(config.model, 10, key=jax.random.key(0))
params = jax.tree.map(jnp.zeros_like, params)
text = jnp.zeros((35, 20), jnp.int32)
loss, _ = window_loss(params, text, text, rnn.zero_state(params.layers, 20), masks=None)
np.testing.assert_allclose(loss, 35 * np.log(10), rtol=1e-6)

# %% [markdown]
# **Exercise 3.** Check that claim: one step of SGD on the sum over time, at a learning rate of 1
# and clipped at a norm of 0.1, and one on the mean, with both numbers changed accordingly, end
# with the same parameters. (`optax` has `sgd` and `clip_by_global_norm`.)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# import optax
#
# params = model.init_params(config.model, 10, key=jax.random.key(0))
# zero = rnn.zero_state(params.layers, 20)
# gradient = jax.grad(lambda p: window_loss(p, text, text, zero, masks=None)[0])(params)
# after = []
# for times in (1, 35):
#     sgd = optax.chain(optax.clip_by_global_norm(0.1 / times), optax.sgd(1.0 * times))
#     scaled = jax.tree.map(lambda g: g / times, gradient)
#     step, _ = sgd.update(scaled, sgd.init(params), params)
#     after.append(optax.apply_updates(params, step))
# jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *after)
# ```
#
# </details>

# %%
# Yours.

# %% [markdown]
# Plain SGD, with the gradient clipped by its norm and a learning rate that is constant at first
# and then decays.

# %%
from zaremba_jax.presets import PRESETS
from zaremba_jax.optimizer import learning_rate

for name in ("small", "medium", "large"):
    train = PRESETS[name].train
    epochs = range(1, train.epochs + 1)
    plt.plot(epochs, [learning_rate(train, epoch) for epoch in epochs], label=name)
plt.xlabel("epoch")
plt.ylabel("learning rate")
plt.legend()
plt.show()

# %% [markdown]
# ## Models averaged
#
# For many models that differ in their seed, the probabilities of each token are averaged, not
# their logarithms.

# %%
from zaremba_jax.ensemble import mixture_nll

p = np.array([[0.5, 0.1], [0.1, 0.7]])  # what each of two models gave to each of two tokens
np.testing.assert_allclose(mixture_nll(-np.log(p)), -np.log(p.mean(axis=0)), rtol=1e-6)

# %% [markdown]
# ## What dropout does to a language model
#
# A small LSTM on the first words of the built-in corpus, so few that it overfits: without dropout,
# with ordinary dropout and with the paper's, both at a rate of 0.3. Each model is tested as it was
# after the epoch that validated best. The floor is the perplexity of the corpus's own source.

# %%
from experiments.ablations.language_modelling import VALIDATION_TOKENS, compare_language_models
from experiments.ablations.methods import METHODS
from zaremba_jax.data.toy_corpus import toy_corpus

corpus = toy_corpus(valid_tokens=VALIDATION_TOKENS)
short = dataclasses.replace(corpus, train=corpus.train[:TRAIN_TOKENS])
base = override(
    QUICK,
    layers=1,
    hidden_size=HIDDEN_SIZE,
    dropout=0.0,
    batch_size=8,
    epochs=EPOCHS,
    constant_epochs=EPOCHS // 2,
)

# %%
methods = ["none", "ordinary", "non_recurrent"]
found = compare_language_models(
    base, short, "lstm", methods, seeds=SEEDS, count=1, on_progress=print
)

# %%
for name in methods:
    curve = np.mean(found[name]["curves"], axis=0)
    plt.plot(range(1, EPOCHS + 1), curve, label=METHODS[name].title)
plt.axhline(corpus.floor_perplexity, color="gray", label="floor of the source")
plt.xlabel("epoch")
plt.ylabel("validation perplexity")
plt.legend()
plt.show()

# %%
rows = [f"| {METHODS[name].title} | {np.mean(found[name]['test']):.1f} |" for name in methods]
Markdown("\n".join(["| | test perplexity |", "|---|---:|", *rows]))

# %% [markdown]
# Dropout helps; two seeds of a small model at one rate cannot tell which of its two kinds is
# better. (An LSTM keeps its memory under both, as exercise 2 shows.) All methods, cells and rates,
# with more seeds and a slower decay of the learning rate: `python -m experiments.ablation`. Its
# results are in `experiments/README.md`, under *What each regularizer does*.
