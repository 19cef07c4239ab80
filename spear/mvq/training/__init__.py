"""Training: the centres that serve many frames best.

Read `mvq` (what is called), then `alternation` (codes for centres, centres for codes) with
`statistics` (the sums that it solves for) and `initialisation` (where it begins). `frames` reads
what does not fit into memory, `state` survives being stopped, `budget` says how long to work.
`baselines` trains what the multi-codebook quantiser is compared with.
"""
