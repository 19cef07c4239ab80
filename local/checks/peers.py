"""Makes s3prl and X-ARES use a SPEAR model from end to end; `local/checks/peers.sh` runs it.

    python local/checks/peers.py model --model DIR                 # writes random weights
    python local/checks/peers.py s3prl --model DIR --work-dir DIR  # fine-tunes on s3prl's example
    python local/checks/peers.py xares --model DIR --work-dir DIR  # encodes and probes a small task

Every part ends with one line that says what was seen, or with an error.
"""

import argparse
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from spear.hub.adapters.s3prl import UpstreamExpert
from spear.hub.export import write_model_folder
from spear.system.optional import require

STEPS = 3
RATE_HZ = 16000
PITCHES_HZ = (200.0, 2000.0)
CLIPS = {"train": 48, "valid": 16, "test": 16}
LEAST_ACCURACY = 0.9
"""Of telling two pitches apart; random weights are enough for it."""
S3PRL_TASK = {
    "runner": {
        "total_steps": STEPS,
        "gradient_clipping": 1,
        "gradient_accumulate_steps": 1,
        "log_step": 1,
        "eval_step": STEPS + 1,
        "save_step": STEPS,
        "max_keep": 1,
        "eval_dataloaders": [],
    },
    "optimizer": {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 1e-3},
    "downstream_expert": {
        "datarc": {"num_workers": 0, "train_batch_size": 2, "eval_batch_size": 2},
        "modelrc": {"input_dim": 16},
    },
}


def write_model(folder: Path) -> str:
    """Writes a model of random weights."""
    from spear.encoders.encoder import SpearEncoder
    from spear.zipformer import ZipformerConfig

    torch.manual_seed(0)
    encoder = SpearEncoder(ZipformerConfig.named("tiny")).eval()
    write_model_folder(encoder, folder, {"weights": "random"})
    return f"wrote {folder}"


def fine_tune_in_s3prl(model: str, work_dir: Path) -> str:
    """Runs s3prl's `run_downstream` with the upstream registered and trained; sees it change."""
    hub: Any = require("huggingface_hub", "s3prl")
    for name in ("HfFolder", "Repository"):  # of old versions; imported, and used for uploads only
        if not hasattr(hub, name):
            setattr(hub, name, object)
    config = work_dir / "example.json"  # YAML has JSON in it
    config.write_text(json.dumps(S3PRL_TASK), encoding="utf-8")
    trained = _kept_upstreams()
    sys.argv = ["run_downstream", "-m", "train", "-d", "example", "-c", str(config)]
    sys.argv += ["-u", "spear", "-k", model, "-f", "--device", "cpu", "-p", str(work_dir / "s3prl")]
    os.chdir(work_dir)
    runpy.run_module("spear.hub.adapters.s3prl", run_name="__main__", alter_sys=False)
    assert (work_dir / "s3prl" / f"states-{STEPS}.ckpt").is_file()
    before, after = UpstreamExpert(model).state_dict(), trained[0].state_dict()
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert len(changed) > len(before) // 2, changed
    assert all(bool(value.isfinite().all()) for value in after.values())
    return f"s3prl trained {len(changed)} of {len(before)} tensors of the upstream in {STEPS} steps"


def _kept_upstreams() -> list[torch.nn.Module]:
    """Returns a list to which every upstream is added that s3prl's runner gives a name."""
    runner: Any = require("s3prl.downstream.runner", "s3prl")
    kept: list[torch.nn.Module] = []
    init = runner.Runner._init_model

    def watched(self: Any, model: torch.nn.Module, name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "Upstream":
            kept.append(model)
        return init(self, model, name, *args, **kwargs)

    runner.Runner._init_model = watched
    return kept


def probe_in_xares(model: str, work_dir: Path) -> str:
    """Lets X-ARES find, check and run the encoder on a task of two pitches."""
    os.environ["SPEAR_MODEL"] = model
    utils: Any = require("xares.utils", "the check", "xares")
    checker: Any = require("xares.audio_encoder_checker", "the check", "xares")
    tasks: Any = require("xares.task", "the check", "xares")
    encoder = utils.attr_from_py_path("spear/hub/adapters/xares.py", endswith="Encoder")()
    assert checker.check_audio_encoder(encoder)
    config = tasks.TaskConfig(
        name="pitches",
        encoder=encoder,
        env_root=work_dir / "xares",
        private=True,
        output_dim=len(PITCHES_HZ),
        label_processor=lambda sample: int(sample["label"]),
        num_encoder_workers=0,
    )
    task = tasks.XaresTask(config=config)
    _write_pitches(task.env_dir)
    (task.env_dir / config.xares_settings.audio_ready_filename).touch()
    task.make_encoded_tar()
    (linear, _), (nearest, _) = task.run_mlp(), task.run_knn()
    assert min(linear, nearest) >= LEAST_ACCURACY, (linear, nearest)
    return f"X-ARES: accuracy {linear:.3f} (linear layer), {nearest:.3f} (nearest neighbours)"


def _write_pitches(folder: Path) -> None:
    """Writes clips of one second with one pitch and noise each, as X-ARES keeps its audio.

    They are of one length since X-ARES pads shorter ones without telling encoders their lengths.
    """
    datasets: Any = require("xares.audiowebdataset", "the check", "xares")
    generator = np.random.default_rng(0)
    times_s = np.arange(RATE_HZ) / RATE_HZ
    for split, count in CLIPS.items():
        paths, labels = [], []
        for number in range(count):
            label = number % len(PITCHES_HZ)
            tone = np.sin(2 * np.pi * PITCHES_HZ[label] * times_s + generator.uniform(0, 6))
            path = folder / f"{split}-{number}.wav"
            noise = generator.normal(size=RATE_HZ)
            soundfile.write(path, 0.1 * tone + 0.01 * noise, RATE_HZ)
            paths.append(str(path))
            labels.append(str(label))
        datasets.write_audio_tar(paths, labels, str(folder / f"{split}-*.tar"), num_shards=1)


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["model", "s3prl", "xares"])
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--work-dir", type=Path, help="folder for what the part leaves behind")
    args = parser.parse_args()
    model = args.model.resolve()
    if args.part == "model":
        seen = write_model(model)
    else:
        part = fine_tune_in_s3prl if args.part == "s3prl" else probe_in_xares
        seen = part(str(model), args.work_dir.resolve())
    print(seen)  # noqa: T201


if __name__ == "__main__":
    main()
