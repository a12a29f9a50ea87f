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
# # Train the paper's model on Colab
#
# The medium LSTM of Zaremba, Sutskever & Vinyals,
# [*Recurrent Neural Network Regularization*](https://arxiv.org/abs/1409.2329), on the Penn
# Treebank. Choose a GPU or a TPU under *Runtime, Change runtime type*, and run the cells from the
# top.

# %% [markdown]
# ## What to train
#
# `SOURCE` is where zaremba_jax is: the address of its repository, as `git clone` takes it, or the
# path of a zip of it, such as `/content/drive/MyDrive/zaremba_jax.zip` on your Drive. `ACCELERATOR`
# is `cuda` on a GPU and `tpu` on a TPU. `FLAGS` are those of `experiments.ptb`, which
# `experiments/README.md` lists; a file is named by its full path. The run lives in `WORKDIR`, on
# your Drive, which outlives the runtime. A folder holds one run: with other `FLAGS`, name another.
#
# Anywhere but on Colab, leave `SOURCE` empty and skip the cells under *Install, on Colab*. There
# the notebook trains `quick`, a small model on the built-in corpus. The outputs shown here are
# of that.

# %% tags=["parameters"]
import sys

SOURCE = ""  # @param {type:"string"}
ACCELERATOR = "cuda"  # @param ["cuda", "tpu"]
ON_COLAB = "google.colab" in sys.modules
WORKDIR = "/content/drive/MyDrive/zaremba_jax/medium" if ON_COLAB else "runs/quick"
FLAGS = ["--config=medium"] if ON_COLAB else ["--config=quick"]
PROMPT = "the company said" if ON_COLAB else "la"

# %% [markdown]
# ## Install, on Colab

# %% tags=["colab"]
from google.colab import drive

drive.mount("/content/drive")

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
# !pip install -q -e ".[{ACCELERATOR},plots]"

# %% [markdown]
# ## The devices
#
# In a clone, Jupyter starts in the folder of the notebook; the programs are run from the root.

# %%
import os
from pathlib import Path

if not Path("setup.py").exists():
    os.chdir("../..")

# %% [markdown]
# Listed in a separate process: one that has taken a TPU, or GPU memory, keeps it from the next.

# %%
# !{sys.executable} -c "import jax; print(jax.__version__, jax.devices())"

# %% [markdown]
# ## Train
#
# Training runs beside the notebook and writes its output to a file. If the folder holds a run that
# was cut off, training resumes it; if this very run is finished, nothing is started. If this
# notebook is already training, the cell starts nothing either. After a restart of the kernel alone,
# an earlier training may still run: wait until it has ended.

# %%
import json
import shlex
import subprocess

Path(WORKDIR).mkdir(parents=True, exist_ok=True)
LOG, SUMMARY = Path(WORKDIR, "log.txt"), Path(WORKDIR, "summary.json")
COMMAND = [sys.executable, "-m", "experiments.ptb", *FLAGS, f"--workdir={WORKDIR}"]


def is_finished():
    summary = json.loads(SUMMARY.read_text()) if SUMMARY.exists() else {}
    return summary.get("command") == shlex.join(COMMAND)


def is_training():
    return run is not None and run.poll() is None


# %%
def train():
    plain = os.environ | {"FORCE_COLOR": ""}  # no progress bars in a file
    # Detached, so that interrupting a cell does not stop it.
    options = {"stderr": subprocess.STDOUT, "env": plain, "start_new_session": True}
    with LOG.open("a") as log:
        return subprocess.Popen(COMMAND, stdout=log, **options)


run = globals().get("run")
if not is_training() and not is_finished():
    run = train()

# %% [markdown]
# ## Watch the curve
#
# `metrics.jsonl` gets a line per epoch: perplexity of the training text, dropout on, and an
# estimate of the validation perplexity. Interrupt the cell to do something else; training goes on.

# %%
import time

import matplotlib.pyplot as plt
from IPython.display import clear_output


# %%
def draw():
    path = Path(WORKDIR, "metrics.jsonl")
    text = path.read_text() if path.exists() else ""
    epochs = [json.loads(line) for line in text.split("\n")[:-1]]  # whole lines
    for name, label in (
        ("train_perplexity", "training"),
        ("valid_perplexity_estimate", "validation"),
    ):
        plt.plot([e["epoch"] for e in epochs], [e[name] for e in epochs], "o-", label=label)
    plt.gca().set(xlabel="epoch", ylabel="perplexity", yscale="log")
    plt.gca().xaxis.get_major_locator().set_params(integer=True)
    plt.gca().yaxis.set_major_formatter("{x:g}")
    plt.gca().yaxis.set_minor_formatter("{x:g}")
    plt.legend()
    plt.show()


# %%
while is_training():
    clear_output(wait=True)
    draw()
    time.sleep(5)
clear_output(wait=True)
draw()

# %% [markdown]
# The end of the output: the final perplexities, or the reason why there are none.

# %%
print("".join(LOG.read_text().splitlines(keepends=True)[-9:]))

# %% [markdown]
# ## After a disconnect
#
# Open the notebook again and run its cells from the top: the same command finds its last checkpoint
# on the Drive. A checkpoint is written at the end of an epoch (if epochs are short, not of every
# one), and every ten minutes within a long one. A finished run is not trained or evaluated again.
#
# Replaced checkpoints stay in the Drive's bin until you empty it: 79 MB each for `medium`, 264 MB
# for `large`.

# %% [markdown]
# ## Write text

# %%
how = shlex.join([f"--workdir={WORKDIR}", f"--prompt={PROMPT}", "--temperature=0.8"])
# !{sys.executable} -m experiments.generate {how}
