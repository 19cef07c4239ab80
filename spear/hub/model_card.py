"""The README of an exported model, written from the records of the run that made it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spear.config import read_yaml
from spear.encoders.encoder import SpearEncoder
from spear.system.markdown import code, markdown_table
from spear.system.weights import num_parameters

_METRICS = "metrics.jsonl"
_FRONT_MATTER = """---
library_name: transformers
pipeline_tag: feature-extraction
tags:
- speech
- audio
- spear
---"""
_ALONE = """With transformers alone (the folder holds the code, hence `trust_remote_code`):

```python
import torch
from transformers import AutoFeatureExtractor, {auto}

folder = "."  # this one, or the id of its repository
model = {auto}.from_pretrained(folder, trust_remote_code=True).eval()
prepare = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
recordings = [torch.randn(16000) * 0.1, torch.randn(9000) * 0.1]  # 16 kHz mono in [-1, 1]
inputs = prepare(recordings, sampling_rate=16000, return_tensors="pt")
{use}
```

"""
SNIPPETS = {
    "encoder": _ALONE.format(
        auto="AutoModel",
        use="""with torch.no_grad():
    out = model(**inputs)
print(out.last_hidden_state.shape, out.attention_mask.sum(1), len(out.hidden_states))""",
    )
    + """With spear, which also streams, encodes long recordings and exports to ONNX and icefall:

```python
import spear
import torch

model = spear.from_pretrained(".")
with torch.no_grad():
    out = model(torch.randn(1, 16000) * 0.1, torch.tensor([16000]))
print(out["encoder_out"].shape, out["encoder_out_lens"])
```""",
    "ctc": _ALONE.format(auto="AutoModelForCTC", use="print(model.transcribe(**inputs))")
    + '`spear.from_pretrained(".")` loads the encoder.',
}
"""How to use a model, by what it is; run in its folder."""


def model_card(encoder: SpearEncoder, name: str, record: Mapping[str, Any], use: str) -> str:
    """Writes a card.

    Args:
        encoder: The model.
        name: Its heading.
        record: What is known of its origin; see `spear.hub.export`.
        use: A key of `SNIPPETS`.
    """
    blocks = [
        _FRONT_MATTER,
        f"# {name}",
        f"A SPEAR encoder for speech and general audio. {_origin(record)}",
        "## Model",
        markdown_table(("", ""), _facts(encoder)),
        *_training(record),
        "## Use",
        SNIPPETS[use],
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def training_record(run_dir: Path) -> dict[str, Any]:
    """Collects what a run's folder says about its training.

    Args:
        run_dir: A run folder, or one of its checkpoint folders.

    Returns:
        Some of `steps`, `audio_hours`, `elapsed_s`, `validation`, `data`, as there are records.
    """
    folders = (run_dir, run_dir.parent, run_dir.parent.parent)
    run = next((folder for folder in folders if (folder / _METRICS).is_file()), None)
    if run is None:
        return {}
    number = run_dir.name.removeprefix("step-")
    last_step = int(number) if number.isdigit() else None
    record: dict[str, Any] = {}
    for line in _lines_until(run / _METRICS, last_step):
        if "data/audio(hours)" in line:
            record |= {"steps": line["step"], "audio_hours": line["data/audio(hours)"]}
            record["elapsed_s"] = line["elapsed_s"]
        found = {k.removeprefix("valid/"): v for k, v in line.items() if k.startswith("valid/")}
        if found:
            record["validation"] = found
    config = run / "config.yaml"
    data = read_yaml(config).get("data", []) if config.is_file() else []
    if isinstance(data, list):
        record["data"] = [Path(entry["path"]).name for entry in data]
    return record


def _lines_until(path: Path, last_step: int | None) -> Iterator[dict[str, Any]]:
    """Yields the records of a metrics file up to a step; a line cut short ends it."""
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            return
        if last_step is None or line["step"] <= last_step:
            yield line


def _origin(record: Mapping[str, Any]) -> str:
    version = record["spear_version"]
    if "imported_from" in record:
        return f"Imported by spear {version} from {code(record['imported_from'])}."
    if record.get("task") == "asr":
        return (
            f"Fine-tuned with spear {version} to recognise speech by CTC; these are the "
            f"{code(record['weights'])} weights of the run."
        )
    if "weights" in record:
        return (
            f"Pre-trained with spear {version} to predict multi-codebook tokens of its teachers; "
            f"these are the {code(record['weights'])} weights of the run."
        )
    return f"Written by spear {version}."


def _facts(encoder: SpearEncoder) -> list[tuple[str, str]]:
    config = encoder.config
    facts = [
        ("parameters", f"{num_parameters(encoder) / 1e6:.2f} M"),
        ("input", f"{encoder.sampling_rate} Hz mono audio"),
        ("output", f"{encoder.output_dim} channels at {encoder.frame_rate_hz:g} Hz"),
        ("layers", f"{encoder.num_layers} in {config.num_stacks} stacks"),
        ("log-mel bins", str(config.feature_dim)),
    ]
    if config.causal:
        chunks = ", ".join(map(str, config.chunk_size))
        facts.append(("causal", f"chunks of {chunks} frames at 50 Hz"))
    return facts


def _training(record: Mapping[str, Any]) -> list[str]:
    """Returns the section on the training, as far as there are records."""
    training: Mapping[str, Any] = record.get("training", {})
    validation: Mapping[str, float] = training.get("validation", {})
    facts = []
    if "steps" in training:
        facts += [
            ("steps", str(training["steps"])),
            ("audio seen", f"{training['audio_hours']:.4g} h"),
            ("time", f"{training['elapsed_s'] / 3600:.2f} h"),
        ]
    if training.get("data"):
        facts.append(("data", ", ".join(map(code, training["data"]))))
    if "wer" in validation:
        facts.append(("word error rate in validation", f"{100 * validation['wer']:.2f}%"))
    teachers = [
        _teacher_row(name, teacher, validation)
        for name, teacher in record.get("teachers", {}).items()
    ]
    header = ("teacher", "codebooks", "Hz", "masked accuracy", "most frequent token")
    blocks = [markdown_table(("", ""), facts)] if facts else []
    if teachers:
        blocks.append(markdown_table(header, teachers, "lrrrr"))
    return ["## Training", *blocks] if blocks else []


def _teacher_row(
    name: str, teacher: Mapping[str, Any], validation: Mapping[str, float]
) -> tuple[str, ...]:
    shares = (
        validation.get(f"{name}_masked_accuracy"),
        validation.get(f"{name}_baseline_accuracy"),
    )
    return (
        name,
        f"{teacher['num_codebooks']} x {teacher['codebook_size']}",
        f"{teacher['frame_rate_hz']:g}",
        *("" if share is None else f"{100 * share:.2f}%" for share in shares),
    )
