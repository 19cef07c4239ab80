"""The whole chain with k-means tokens of two bytes: frames, quantiser, tokens, student."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_pretrain_command import make_config

from spear.data.index.clip_index import ClipIndex, SourceConfig
from spear.data.index.shard_folder import ShardFolder
from spear.data.tokens import embed, extract
from spear.data.verify import command as verify
from spear.data.verify.shard import check_tokens
from spear.errors import TokenError
from spear.mvq import KMeansQuantizer, load_quantizer
from spear.mvq import command as train_quantizer
from spear.mvq.command import TrainQuantizerConfig
from spear.pretrain.augment import AugmentConfig
from spear.pretrain.command import run
from spear.pretrain.model import TeacherTarget
from spear.pretrain.reading import token_counts
from spear.pretrain.task import PretrainTask
from spear.teachers import TeacherConfig
from tests.pretrain.small_shards import make_clip, write_shards

CODEBOOK_SIZE = 300


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A shard folder with tokens, and the k-means quantiser that made them."""
    root = tmp_path_factory.mktemp("chain")
    clips = [make_clip(number, "speech") for number in range(20)]
    folder = str(write_shards(root / "shards", clips, teachers=()))
    teacher = TeacherConfig(name="logmel")
    embed.run(
        embed.EmbedConfig(
            shards=[folder], teacher=teacher, output=str(root / "sample"), clip_share=1.0
        )
    )
    config = TrainQuantizerConfig(
        frames=str(root / "sample"),
        output=str(root / "kmeans.safetensors"),
        method="kmeans",
        num_codebooks=1,
        codebook_size=CODEBOOK_SIZE,
        device="cpu",
    )
    train_quantizer.run(config)
    extract.run(
        extract.ExtractConfig(
            shards=[folder], teacher=teacher, quantizer=config.output, device="cpu"
        )
    )
    return ShardFolder(folder), config.output


def pretrain_config(chain, output_dir, **changes):
    folder, quantizer = chain
    sources = [SourceConfig(str(folder.path))]
    target = TeacherTarget("speech", 1, CODEBOOK_SIZE, quantizer=quantizer)
    config = make_config((sources, sources), output_dir, **changes)
    return replace(config, teachers={"logmel": target})


def test_tokens_on_disk_have_two_bytes(chain):
    folder, path = chain
    quantizer = load_quantizer(path)
    assert isinstance(quantizer, KMeansQuantizer)
    sidecar = folder.sidecar("logmel")
    assert (sidecar.num_codebooks, sidecar.codebook_size) == (1, CODEBOOK_SIZE)
    assert sidecar.quantizer_id == quantizer.id
    tokens = [folder.tokens(info, "logmel") for info in folder]
    assert all(one.dtype == np.uint16 for one in tokens)
    assert int(np.concatenate(tokens).max()) > 255
    report = (folder.path / "logmel_tokens.md").read_text()
    assert "300" in report
    verify.run(verify.VerifyConfig(shards=[str(folder.path)], quantizers={"logmel": path}))


def test_verify_finds_tokens_of_the_wrong_width_or_range(chain):
    folder, _ = chain
    sidecar = folder.sidecar("logmel")
    tokens = folder.tokens(folder.cut(0), "logmel")
    seconds = folder.cut(0).duration_s
    assert check_tokens(tokens, seconds, sidecar) == []
    (problem,) = check_tokens(tokens.astype(np.uint8), seconds, sidecar)
    assert problem == "uint8 where a codebook of 300 has uint16"
    tokens = tokens.copy()
    tokens[0] = 300
    (problem,) = check_tokens(tokens, seconds, sidecar)
    assert problem == "value 300 in a codebook of 300"


def test_batches_carry_the_tokens_of_the_files(chain, tmp_path):
    folder, _ = chain
    task = PretrainTask(pretrain_config(chain, tmp_path / "exp"))
    batch = next(task.valid_batches(0, 1))
    assert batch.tokens["logmel"].dtype == torch.int32
    by_id = {info.id: info for info in folder}
    for row, name in enumerate(batch.ids):
        tokens = folder.tokens(by_id[name], "logmel").astype(np.int64)
        valid = batch.token_valid["logmel"][row]
        found = batch.tokens["logmel"][row][valid]
        assert torch.equal(found.long(), torch.from_numpy(tokens[: len(found)]))


def test_the_baseline_of_accuracies_may_be_a_code_above_255(chain, tmp_path):
    task = PretrainTask(pretrain_config(chain, tmp_path / "exp"))
    counts = torch.nn.functional.one_hot(torch.tensor([299]), 300)
    task.model.set_token_counts("logmel", counts)
    assert task.model.baseline("logmel").frequent.tolist() == [299]


def test_a_student_learns_them_with_token_mixing(chain, tmp_path):
    mixed = AugmentConfig(prob=1.0, mixing_share=1.0)
    run(pretrain_config(chain, tmp_path / "exp", max_steps=12, augment=mixed))
    lines = [json.loads(line) for line in (tmp_path / "exp/metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def test_a_target_of_another_size_is_refused(chain, tmp_path):
    config = pretrain_config(chain, tmp_path / "exp")
    config.teachers["logmel"] = replace(config.teachers["logmel"], codebook_size=256)
    with pytest.raises(TokenError, match="codebook_size is 300"):
        PretrainTask(config)


def test_code_counts_know_all_codes(chain):
    folder, _ = chain
    required = {"speech": ("logmel",), "audio": ()}
    index = ClipIndex([SourceConfig(str(folder.path))], required, {})
    counts = token_counts(
        index, "logmel", num_codebooks=1, codebook_size=CODEBOOK_SIZE, max_clips=99, seed=0
    )
    tokens = np.concatenate([folder.tokens(info, "logmel")[:, 0] for info in folder])
    np.testing.assert_array_equal(counts[0], np.bincount(tokens, minlength=CODEBOOK_SIZE))
