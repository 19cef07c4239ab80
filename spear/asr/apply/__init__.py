"""What a finished recogniser is used for.

Read `search` (which search a configuration means), `recognize` (recordings to n-best text, in
windows where they are long), then the commands `decode` (shards, with error rates) and
`transcribe_files` (recordings, to text, JSON and subtitles); `streaming_recognizer` for live audio.
"""
