"""From scores to text: beam search with n-grams and hotwords, for CTC and for transducers.

Read `ctc_beam`, then `transducer_search` (greedy and modified beam search); `ngram` and `hotwords`
are what both may add to a hypothesis. Models are not known here: `spear.asr.apply.search` chooses.
"""
