"""The quantisers: what each kind is, and how it finds and undoes codes.

Read `codebooks` first, what all have in common; then `quantizer`, the multi-codebook one that spear
is about, and the baselines `kmeans`, `residual` and `random_projection`. `files` is their file,
`loading` gives any of them back.
"""
