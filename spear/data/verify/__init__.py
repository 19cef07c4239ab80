"""`spear verify`: whether shard folders hold what their records promise.

Read `command` first; `shard` judges one shard, `sidecar` a teacher's sidecar, and `recheck` makes
tokens anew; `findings` is what they fill in, `report` what people get of it.
"""
