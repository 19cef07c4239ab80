"""Teachers over shard folders: a sample of frames (`embed`), tokens for every clip (`extract`).

Read `batches` (what a teacher gets at once), `frames` (a teacher over batches), then `embed`; or on
with `maker` (frames to tokens), `finished` (which shards of a folder have their tokens), `pipeline`
(reading, computing and writing at the same time), `cost` (the dry run) and `extract`, the command.
"""
