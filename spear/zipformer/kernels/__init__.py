"""What is done by hand because autograd's way is slow or large.

Read `recompute` (activations that are computed again) and `gradients` (what a backward pass does
to a gradient), then `depthwise`; `depthwise_loops` and `swoosh_loops` are the same arithmetic for
CPUs where numba is installed, each tested against the tensor operations that it stands for.
"""
