"""What has nothing to do with audio: files, progress, devices, ranks, optional packages.

`files` writes whole or not at all, `markdown` makes reports, `ledger` notes what a command cost,
`parallel` maps ahead in order, `rng` draws what belongs to a place of a run, `optional` names the
install command of what is missing.
"""
