"""Recordings on their way to a batch: manifests, shards, teacher tokens, and their checks.

One module per stage (`prepare`, `shard`, `embed`, `extract`, `verify`), the formats that they share
(`shards`, `tokens`, `tars`), and what training reads them with. Names are imported from their
modules, so that a command loads what it needs and nothing else.
"""
