"""`spear report`: one HTML page about runs and a recipe's results.

`sources` finds what lies in folders and reads it, `run_files` and `compute` say what runs and the
ledger mean, `charts` and `panels` what is drawn, `page` fills `templates/`; `command` is the way
through. Read them in this order.
"""
