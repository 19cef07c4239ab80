"""The search for the codes of a frame, on a table of inner products.

Read `products` (the table), then `joint` (the search) and `merge_pass` (its main step), in tensor
operations. `compiled` is the same for CPUs, by numba; `limits` is what both keep to.
"""
