"""Tokens of every family through the whole extraction: batch mates change nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from spear.data.corpus import prepare, shard
from spear.data.corpus.prepare import PrepareConfig
from spear.data.corpus.shard import ShardConfig
from spear.data.index.shard_folder import ShardFolder
from spear.data.tokens import extract
from spear.data.tokens.extract import ExtractConfig
from spear.data.verify import command as verify
from spear.data.verify.command import VerifyConfig
from spear.errors import TokenError
from spear.mvq import Quantizer
from spear.teachers import TeacherConfig, load_teacher

Spec = Callable[[str], dict[str, Any]]
FAMILIES = [
    *("logmel", "mfcc", "wavlm", "wavlm-group", "hubert", "wav2vec2", "data2vec"),
    *("dasheng", "spear"),
]
LENGTHS_S = (0.31, 1.7, 0.9, 2.6, 0.5, 1.1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardFolder:
    """Two shards of noise of very different level and length."""
    root = tmp_path_factory.mktemp("noise")
    for number, length_s in enumerate(LENGTHS_S):
        samples = np.random.default_rng(number).normal(size=int(16000 * length_s))
        (root / "wav").mkdir(exist_ok=True)
        soundfile.write(root / "wav" / f"{number}.wav", samples * 10.0 ** (-number / 2) / 8, 16000)
    manifests = str(root / "manifests")
    prepare.run(
        PrepareConfig(
            source_dir=str(root / "wav"),
            corpus="noise",
            output_dir=manifests,
            valid_fraction=0.0,
            num_jobs=1,
        )
    )
    cuts, output = f"{manifests}/noise_train_cuts.jsonl.gz", str(root / "shards")
    shard.run(ShardConfig(cuts=cuts, output_dir=output, shard_size=4))
    return ShardFolder(output)


@pytest.fixture
def settings(shards: ShardFolder, make_spec: Spec, tmp_path: Path) -> Callable[..., ExtractConfig]:
    """Returns what extracts a family's tokens, with a random quantiser of fitting width."""

    def make(family: str, **changes: Any) -> ExtractConfig:
        spec = make_spec(family)
        teacher = load_teacher(spec)
        audio = torch.from_numpy(shards.audio(3))[None]
        frames, _ = teacher(audio, torch.tensor([audio.shape[1]]))
        generator = torch.Generator().manual_seed(1)
        quantizer = Quantizer(
            torch.randn(4, 16, teacher.dim, generator=generator) / 2,
            channel_mean=frames[0].mean(0),
            channel_scale=frames[0].std(0) + 1e-3,
        )
        quantizer.save(tmp_path / f"{family}.safetensors")
        return ExtractConfig(
            shards=[str(shards.path)],
            teacher=TeacherConfig(**spec),
            quantizer=str(tmp_path / f"{family}.safetensors"),
            device="cpu",
            **changes,
        )

    return make


def tokens_of(folder: ShardFolder, name: str) -> list[np.ndarray]:
    afresh = ShardFolder(folder.path)  # another one keeps files open that were replaced
    return [afresh.tokens(info, name) for info in afresh]


def remove_tokens(folder: ShardFolder, name: str) -> None:
    for path in folder.path.glob(f"*{name}_tokens*"):
        path.unlink()


def equal_share(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    return float(np.mean(np.concatenate(found) == np.concatenate(expected)))


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_in_batches_are_those_one_by_one(
    family: str, settings: Callable[..., ExtractConfig], shards: ShardFolder
) -> None:
    found = []
    for batch_s in (20.0, 1e-3):
        remove_tokens(shards, family)
        extract.run(settings(family, batch_s=batch_s))
        found.append(tokens_of(shards, family))
    assert [len(one) for one in found[0]] == [len(one) for one in found[1]]
    assert len(np.unique(np.concatenate(found[0]))) > 8  # equality of a constant would be no news
    assert equal_share(*found) > 0.995  # a value on the edge between two codes may fall either way


@pytest.mark.parametrize("family", ["wavlm", "data2vec", "dasheng", "spear"])
def test_bfloat16_is_near_and_recorded_and_not_mixed(
    family: str, settings: Callable[..., ExtractConfig], shards: ShardFolder
) -> None:
    remove_tokens(shards, family)
    extract.run(settings(family, precision="float32"))
    exact = tokens_of(shards, family)
    with pytest.raises(TokenError, match="precision 'float32' and not 'bfloat16'"):
        extract.run(settings(family, precision="bfloat16"))
    remove_tokens(shards, family)
    config = settings(family, precision="bfloat16")
    extract.run(config)
    rough = tokens_of(shards, family)
    assert shards.sidecar(family).teacher_identity["precision"] == "bfloat16"
    assert 0.5 < equal_share(rough, exact) < 1.0
    with pytest.raises(TokenError, match="precision 'bfloat16' and not 'float32'"):
        extract.run(settings(family, precision="float32"))
    # Made again in the same precision; in float32 the tokens would be refused.
    verify.run(
        VerifyConfig(
            shards=[str(shards.path)],
            teachers=[family],
            quantizers={family: config.quantizer},
            recheck=6,
            device="cpu",
            min_entropy=0.0,
        )
    )


def test_without_a_network_bfloat16_changes_nothing(
    settings: Callable[..., ExtractConfig], shards: ShardFolder
) -> None:
    found = []
    for precision in ("float32", "bfloat16"):
        remove_tokens(shards, "mfcc")
        extract.run(settings("mfcc", precision=precision))
        found.append(tokens_of(shards, "mfcc"))
    assert equal_share(*found) == 1.0


@pytest.mark.parametrize("family", ["wavlm", "dasheng", "spear"])
def test_frames_in_bfloat16_depend_little_on_batch_mates(family: str, make_spec: Spec) -> None:
    teacher = load_teacher(make_spec(family), precision="bfloat16")
    generator = torch.Generator().manual_seed(0)
    audio, lens = torch.randn(3, 20000, generator=generator), torch.tensor([20000, 9000, 13000])
    frames, num_frames = teacher(audio, lens)
    exact, _ = load_teacher(make_spec(family))(audio, lens)
    rms = exact.square().mean().sqrt()
    assert 0 < float((frames - exact).square().mean().sqrt()) < 0.03 * rms
    for row, count in enumerate(num_frames.tolist()):
        alone, _ = teacher(audio[row : row + 1, : lens[row]], lens[row : row + 1])
        assert float((alone[0] - frames[row, :count]).square().mean().sqrt()) < 0.03 * rms
