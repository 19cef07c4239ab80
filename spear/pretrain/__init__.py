"""Pre-training: masking, heads and losses, and the task that the training loop runs.

`spear pretrain` lives in `spear.pretrain.command`; names are imported from their modules.
"""
