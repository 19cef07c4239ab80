"""Bytes on disk and nothing else: the files that the stages of data preparation leave for others.

Read `manifests` (cuts before they are sharded, and what was left out), `tars` (lhotse's Shar tar
files), `shards` (the names, record and cuts of a shard folder), `tokens` (teachers' tokens beside
the audio), `part_records` (what of a stage is finished) and `kaldi_text` (transcripts and lists).
"""
