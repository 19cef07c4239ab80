"""icefall's recognisers: CTC, transducer, or both, from a checkpoint and its `bpe.model`.

Names and shapes are those of icefall's `zipformer` recipe. From the shapes follow the sizes of the
decoder and the joiner. What is neither CTC nor transducer (an attention decoder, say) is left
aside, and named.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spear.asr.model import AsrModel
from spear.asr.tokenizer import Tokenizer
from spear.asr.transducer import TransducerConfig, TransducerModel
from spear.encoders.icefall import ENCODER_PREFIXES, encoder_config, encoder_weights, read_weights
from spear.errors import CheckpointError
from spear.system.weights import load_exact
from spear.zipformer import ZipformerConfig

_THEIR_CTC, _OUR_CTC = "ctc_output.1.", "ctc_head.linear."
_TRANSDUCER = ("decoder.", "joiner.", "simple_am_proj.", "simple_lm_proj.")
_OUT, _EMBEDDING, _CONV = (
    "joiner.output_linear.weight",
    "decoder.embedding.weight",
    "decoder.conv.weight",
)


def load_recognizer(
    path: Path,
    tokenizer: Tokenizer,
    student: Mapping[str, Any] | None = None,
    weights: str = "model",
) -> tuple[AsrModel, list[str]]:
    """Reads a whole recogniser from an icefall checkpoint.

    Args:
        path: The file.
        tokenizer: What its ids mean.
        student: Fields of the encoder that the file does not tell.
        weights: "model" or "model_avg".

    Returns:
        The recogniser in evaluation mode, and the names of the modules that were left aside.

    Raises:
        CheckpointError: The file cannot be read, holds no recogniser, or one with another
            vocabulary, or its encoder is not as described.
        ConfigError: A field of `student` does not exist or fit.
    """
    content, theirs = read_weights(path, weights)
    config = encoder_config(path, content, theirs, student)
    state = {_our_name(name): value for name, value in encoder_weights(theirs, config).items()}
    _check_vocabulary(state, tokenizer, path)
    model = _build(state, config, tokenizer)
    own = model.state_dict()
    used = {name: value for name, value in state.items() if _is_read(name, model)}
    # A transducer that was trained without CTC: the head stays as it is, and is never read.
    heads = {name: value for name, value in own.items() if name.startswith(_OUR_CTC)}
    load_exact(model, {**heads, **used}, str(path))
    return model.eval(), sorted({name.split(".")[0] for name in state if name not in used})


def _our_name(name: str) -> str:
    if name.startswith(ENCODER_PREFIXES):
        return f"encoder.{name}"
    return _OUR_CTC + name.removeprefix(_THEIR_CTC) if name.startswith(_THEIR_CTC) else name


def _is_read(name: str, model: AsrModel) -> bool:
    heads = (*_TRANSDUCER, _OUR_CTC) if isinstance(model, TransducerModel) else (_OUR_CTC,)
    return name.startswith(("encoder.", *heads))


def _check_vocabulary(state: Mapping[str, Tensor], tokenizer: Tokenizer, path: Path) -> None:
    """Refuses a checkpoint without heads, or with heads for other tokens."""
    heads = [state[name] for name in (_OUT, f"{_OUR_CTC}weight") if name in state]
    if not heads:
        raise CheckpointError(
            f"{path} holds no recogniser, neither joiner nor ctc_output: leave out bpe_model to "
            "import its encoder"
        )
    for head in heads:
        if len(head) != tokenizer.vocab_size:
            raise CheckpointError(
                f"{path} has {len(head)} tokens, the tokenizer {tokenizer.vocab_size}: it is the "
                "tokenizer of another model"
            )


def _build(state: Mapping[str, Tensor], config: ZipformerConfig, tokenizer: Tokenizer) -> AsrModel:
    """Builds a model of the sizes that the weights have."""
    if _OUT not in state:
        return AsrModel(config, tokenizer)
    is_with_ctc = f"{_OUR_CTC}weight" in state
    sizes = TransducerConfig(
        decoder_dim=state[_EMBEDDING].shape[1] if _EMBEDDING in state else 512,
        joiner_dim=state[_OUT].shape[1],
        context_size=state[_CONV].shape[2] if _CONV in state else 1,
        ctc_weight=0.2 if is_with_ctc else 0.0,
    )
    with torch.random.fork_rng(devices=[]):
        return TransducerModel(config, tokenizer, sizes)
