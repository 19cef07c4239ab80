"""Speech recognition with a pre-trained encoder: tokenizer, CTC, fine-tuning, decoding, scoring.

from spear.asr import load_asr_model, transcribe

model = load_asr_model("exp/asr")
print(transcribe(model, [audio])[0].text)
"""

from spear.asr.apply.recognize import transcribe
from spear.asr.loading import load_asr_model
from spear.asr.model import AsrModel, Transcript
from spear.asr.tokenizer import Tokenizer, TokenizerConfig

__all__ = [
    "AsrModel",
    "Tokenizer",
    "TokenizerConfig",
    "Transcript",
    "load_asr_model",
    "transcribe",
]
