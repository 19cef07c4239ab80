"""The parts of a Zipformer layer, one a file, under icefall's parameter names.

Read `activations`, `norm` and `bypass`, then `attention_scores` (the weights that three modules of
a layer share), `attention`, `convolution` and `feedforward`; `regularizers` are the balancers and
whitening that act on gradients alone.
"""
