"""What every kind of fine-tuning shares.

To be read in this order: `encoder` (where the pre-trained encoder comes from, when it learns how
fast), `config` (the fields that all fine-tunings have), `data` and `task` (what the training loop
asks of them), `spec_augment`. `spear.asr.train` and `spear.tagging` are built on it.
"""
