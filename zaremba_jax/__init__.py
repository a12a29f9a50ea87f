"""Zaremba, Sutskever & Vinyals, "Recurrent Neural Network Regularization", in JAX.

The modules, in the order of the paper: `corpus` (text to windows), `cells` (one
LSTM step), `regularizers` (dropout masks), `rnn` (the deep RNN), `model` (the
language model), `optimizer`, `train`, `evaluate`, `ensemble`, `checkpoint`; `config` holds
the paper's presets, `published` and `toy_corpus` the texts.

Where to begin: `train.init_train_state` and `train.train_windows` train, `evaluate.text_nll`
evaluates, `exported.save_model` and `load_model` store a model, `generate.generate` writes
text with it; `flax_modules.DeepRNN` is the network as a Flax module.
"""
