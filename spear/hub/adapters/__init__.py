"""A module for each tool that evaluates encoders or stores their frames, named as it wants them.

`hear`, `s3prl`, `xares` and `lhotse_features` are read by themselves; what they share are
`spear.encoders.layer_frames` and `frame_grid`.
"""
