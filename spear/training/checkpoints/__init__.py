"""What of a run survives it: folders that are complete or absent, and what is in them.

Read `checkpoint` (the folder), `run_state` (what a trainer puts into it and takes out), then
`averaging` (of weights, in float64) and `sharding` (FSDP2, whose checkpoints are DDP's).
"""
