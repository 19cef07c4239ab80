"""From what people have to shard folders: archives, folders of recordings, cut manifests, shards.

Read in the order of the stages: `unpack` (archives to folders), `scan` (which files are
recordings), `prepare` with `joining` (recordings to cut manifests), `shard` with `cut_audio`
(manifests to shard folders). `recordings` is for commands that take single files.
"""
