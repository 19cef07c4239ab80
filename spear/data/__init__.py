"""Recordings on their way to a batch: manifests, shards, teacher tokens, and their checks.

In the order of the way: `corpus` (recordings to shards), `formats` (bytes on disk, nothing else),
`index` (random reading, the order of a run), `tokens` (teachers over shards), `verify`. Names are
imported from their modules, so that a command loads what it needs and nothing else.
"""
