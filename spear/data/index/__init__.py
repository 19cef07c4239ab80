"""From shard folders to batches of clips, whatever they are for: random access, order, loading.

Read `shard_folder` (clips by number; it stands on `arrays`, files that are memory-mapped, and
`build`, what an index holds), `clip_index` (several folders under one numbering), `clip_table`,
`shard_order`, `packing` and `plan` (which clips form which batch), and `loader` (workers make the
batches). `command` is `spear index`.
"""
