"""icefall's checkpoints as model folders.

`command` is `spear import-icefall`; `recognizer` reads a whole recogniser, `spear.encoders.icefall`
the encoder alone, and writes it for icefall's recipes.
"""
