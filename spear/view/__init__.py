"""Pictures of what an encoder makes of a recording: `spear view`.

`command` computes what there is to draw, with the arithmetic of `numbers`; `pictures` draws it.
"""
