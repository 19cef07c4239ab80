"""Encoders and CTC recognisers as ONNX files.

`export` is the command. `source` finds out what a folder holds, `graph` turns it into a file and
one with 8-bit weights, `check` runs every file beside its model, `readme` says how to use them.
"""
