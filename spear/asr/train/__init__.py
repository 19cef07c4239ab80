"""Fine-tuning for speech recognition, on what `spear.finetune` shares with other tasks.

Read `finetune` (the command), `data` (transcribed shards to batches), `task` (what the training
loop sees); `augment`, `noise` and `transcripts` are what data are put through.
"""
