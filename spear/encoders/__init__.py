"""What turns audio into layers: 16 kHz samples, log-mel features, the frames of every layer.

Read `encoder` first: `SpearEncoder` runs batches, long recordings by `windows` and, where a model
is causal, piece by piece by `audio_stream`. `loading` finds the encoder in a model folder, whose
`config.json` is `config_json`'s, or in a checkpoint of `icefall`. `frame_grid` says where frames
lie in time, `layer_frames` reads one layer's from any recordings, and `layers` numbers them.
`protocol` is what models ask of an encoder that they hold.
"""
