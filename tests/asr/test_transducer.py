"""The transducer recogniser: its losses, its weights' names, and a run that learns."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from spear.asr.apply.recognize import transcribe
from spear.asr.apply.search import SearchConfig
from spear.asr.batch import AsrBatch
from spear.asr.loading import load_asr_model
from spear.asr.model import AsrModel
from spear.asr.rnnt.losses import rnnt_loss
from spear.asr.search.ctc_beam import BeamConfig
from spear.asr.tokenizer import Tokenizer, TokenizerConfig
from spear.asr.train.finetune import run as finetune
from spear.asr.transducer import TransducerConfig, TransducerModel
from spear.asr.transducer_modules import Decoder, Joiner
from spear.errors import ConfigError
from spear.finetune.encoder import is_of_encoder
from spear.zipformer import ZipformerConfig

TEXTS = ["AB CD", "DA", "B A C", "CCD", "D"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, TokenizerConfig())


def small_student(**changes):
    return ZipformerConfig(
        feature_dim=20,
        downsampling_factor=(1, 2),
        encoder_dim=(16,),
        num_encoder_layers=(1, 1),
        encoder_unmasked_dim=(16,),
        query_head_dim=(4,),
        value_head_dim=(4,),
        num_heads=(2,),
        feedforward_dim=(24,),
        cnn_module_kernel=(7,),
        pos_dim=8,
        embed_channels=(4, 8, 16),
        dropout=0.0,
        warmup_batches=1.0,
        **changes,
    )


def small(**changes):
    return TransducerConfig(**{"decoder_dim": 12, "joiner_dim": 10, "prune_range": 3, **changes})


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return TransducerModel(small_student(), tokenizer, small(), dropout=0.0).eval()


def make_batch(tokenizer, frames=(60, 40, 30), texts=("AB CD", "", "DA")):
    torch.manual_seed(1)
    tokens = [torch.tensor(tokenizer.encode(text), dtype=torch.long) for text in texts]
    return AsrBatch(
        ids=[f"utt{i}" for i in range(len(texts))],
        audio_s=sum(frames) / 100,
        fbank=torch.randn(len(texts), max(frames), 20),
        fbank_lens=torch.tensor(frames),
        tokens=pad_sequence(tokens, batch_first=True),
        token_lens=torch.tensor([len(own) for own in tokens]),
        texts=list(texts),
    )


def value(term):
    return float(term.total.detach() / term.count)


def test_every_loss_is_there_per_frame_with_its_weight(model, tokenizer):
    batch = make_batch(tokenizer)
    output = model(batch)
    assert set(output.terms) == {"ctc", "simple", "pruned"}
    num_frames = sum(model.encoder.num_output_frames(num) for num in (60, 40, 30))
    for name, weight in model.loss_weights().items():
        assert output.terms[name].weight == weight
        assert int(output.terms[name].count) == num_frames
        assert 0.1 < value(output.terms[name]) < 10
    assert int(output.metrics["transducer_left_out"].total) == 0
    assert "wer" in output.metrics


def test_with_wide_windows_the_pruned_loss_is_the_full_one(model, tokenizer):
    batch = make_batch(tokenizer)
    frames, lens = model.encode(batch.fbank, batch.fbank_lens)
    wide = TransducerModel(small_student(), tokenizer, small(prune_range=9)).eval()
    wide.load_state_dict(model.state_dict())
    term = wide.losses(frames, lens, batch).terms["pruned"]

    encoded = model.joiner.encoder_proj(frames).unsqueeze(2)
    decoded = model.joiner.decoder_proj(model.decoder.read(batch.tokens)).unsqueeze(1)
    logits = model.joiner(encoded, decoded)
    full = rnnt_loss(logits, batch.tokens, lens, batch.token_lens, reduction="sum")
    torch.testing.assert_close(term.total, full)


def test_the_loss_of_an_utterance_does_not_depend_on_its_batch_mates(model, tokenizer):
    batch = make_batch(tokenizer)
    together = model(batch)
    alone = [
        model(make_alone(batch, i, num, length))
        for i, (num, length) in enumerate(
            zip(batch.fbank_lens.tolist(), batch.token_lens.tolist(), strict=True)
        )
    ]
    for name, term in together.terms.items():
        expected = sum(one.terms[name].total for one in alone)
        torch.testing.assert_close(term.total, expected, rtol=1e-4, atol=1e-4)


def make_alone(batch, i, num_frames, num_tokens):
    return dataclasses.replace(
        batch,
        ids=batch.ids[i : i + 1],
        fbank=batch.fbank[i : i + 1, :num_frames],
        fbank_lens=batch.fbank_lens[i : i + 1],
        tokens=batch.tokens[i : i + 1, :num_tokens],
        token_lens=batch.token_lens[i : i + 1],
        texts=batch.texts[i : i + 1],
    )


def test_what_does_not_fit_is_left_out_and_counted(model, tokenizer):
    """14 frames of fbank are 7 of the encoder; 3 of them, 1 only."""
    batch = make_batch(tokenizer, frames=(60, 2, 0), texts=("AB CD", "DABC", "A"))
    for parameter in model.parameters():
        parameter.grad = None
    output = model(batch)
    only = model(make_alone(batch, 0, 60, 5))
    assert output.metrics["transducer_left_out"].total == 2
    for name in ("simple", "pruned"):
        assert int(output.terms[name].count) == model.encoder.num_output_frames(60)
        torch.testing.assert_close(output.terms[name].total, only.terms[name].total)
    sum(term.total for term in output.terms.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_a_batch_without_any_frame(model, tokenizer):
    output = model(make_batch(tokenizer, frames=(0, 0), texts=("A", "")))
    for term in output.terms.values():
        assert float(term.total.detach()) == float(term.count) == 0.0


@pytest.mark.parametrize("frames", [1, 4, 10])
def test_fits_is_what_a_path_needs(model, frames):
    """At the limit the pruned loss is finite; one label more and there is no path."""
    for num_labels, expected in ((2 * frames, True), (2 * frames + 1, False)):
        sizes = (torch.tensor([frames]), torch.tensor([num_labels]))
        assert model.fits(*sizes).tolist() == [expected]
        tokens = torch.full((1, num_labels), 2)
        batch = AsrBatch([""], 1.0, torch.zeros(1, 0, 20), sizes[0], tokens, sizes[1], [""])
        torch.manual_seed(0)
        encoded = torch.randn(1, frames, model.encoder.output_dim)
        losses = model._transducer_losses(encoded, sizes[0], batch)
        assert losses["simple"].isfinite()
        assert bool(losses["pruned"].isfinite()) == expected


def test_weights_of_the_losses_warm_up(tokenizer):
    model = TransducerModel(small_student(), tokenizer, small(warmup_steps=100, ctc_weight=0.3))
    after = {"simple": 0.5, "pruned": 1.0, "ctc": 0.3}
    assert model.loss_weights() == after
    model.set_step(0)
    assert model.loss_weights() == pytest.approx({"simple": 1.0, "pruned": 0.1, "ctc": 0.3})
    model.set_step(50)
    assert model.loss_weights() == pytest.approx({"simple": 0.75, "pruned": 0.55, "ctc": 0.3})
    model.set_step(100)
    assert model.loss_weights() == after
    assert not any("warm" in name for name in model.state_dict())


def test_bfloat16_autocast_gives_about_the_same_losses(model, tokenizer):
    batch = make_batch(tokenizer)
    exact = model(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(batch)
    for name, term in exact.terms.items():
        assert found.terms[name].total.dtype == torch.float32
        assert value(found.terms[name]) == pytest.approx(value(term), rel=0.02)


def test_names_are_those_of_icefall(model):
    names = {name for name in model.state_dict() if not is_of_encoder(name)}
    assert names == {
        "decoder.embedding.weight",
        "decoder.conv.weight",
        *(
            f"{layer}.{kind}"
            for layer, kind in itertools.product(
                (
                    "joiner.encoder_proj",
                    "joiner.decoder_proj",
                    "joiner.output_linear",
                    "simple_am_proj",
                    "simple_lm_proj",
                    "ctc_head.linear",
                ),
                ("weight", "bias"),
            )
        ),
    }
    assert model.decoder.conv.weight.shape == (12, 4, 2)


def test_the_decoder_sees_its_context_alone():
    torch.manual_seed(0)
    decoder = Decoder(9, 8, context_size=2).eval()
    tokens = torch.tensor([[3, 5, 2, 3, 5]])
    read = decoder.read(tokens)
    assert read.shape == (1, 6, 8)
    torch.testing.assert_close(read[0, 2], read[0, 5])
    assert not torch.allclose(read[0, 0], read[0, 1])
    step = decoder(torch.tensor([[5, 2]]))
    torch.testing.assert_close(step[0, 0], read[0, 3])
    # What stands before the beginning is zero, as icefall pads its convolution.
    embedded = decoder.embedding(torch.tensor([0]))
    expected = torch.einsum(
        "gok,gk->go", decoder.conv.weight[:, :, 1].view(2, 4, 4), embedded.view(2, 4)
    )
    torch.testing.assert_close(read[0, 0], expected.flatten().relu())


def test_a_context_of_one_has_no_convolution():
    decoder = Decoder(9, 8, context_size=1).eval()
    assert set(decoder.state_dict()) == {"embedding.weight"}
    assert torch.equal(decoder.read(torch.tensor([[4]]))[0, 1], decoder.embedding.weight[4])


def test_the_joiner_adds_projections():
    joiner = Joiner(6, 8, 5, 9)
    encoded, decoded = torch.randn(2, 5), torch.randn(2, 5)
    expected = joiner.output_linear((encoded + decoded).tanh())
    assert torch.equal(joiner(encoded, decoded), expected)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"prune_range": 1}, "prune_range is 1, below 2"),
        ({"decoder_dim": 10}, "decoder_dim is 10: not a multiple of 4"),
        ({"context_size": 0}, "context_size is 0"),
        ({"simple_weight": -0.5}, "simple_weight is -0.5, below 0"),
        ({"lm_scale": 0.8, "am_scale": 0.3}, "above 1 together"),
    ],
)
def test_what_does_not_fit_is_refused(change, match):
    with pytest.raises(ConfigError, match=match):
        TransducerConfig(**change)


def test_the_command_learns_utterances_by_heart(
    make_config, tone_shards, tone_texts, sing, tmp_path
):
    """The whole run: train, load what it wrote, recognise, with times and without batch mates.

    With five utterances labels may stand anywhere, so no single path is probable: the beam's score,
    a sum over paths, says what the loss says; greedily a last label may be missed.
    """
    transducer = TransducerConfig(decoder_dim=32, joiner_dim=48, warmup_steps=20)
    config = make_config(tone_shards, tmp_path, 150, head="transducer", transducer=transducer)
    finetune(config)
    model = load_asr_model(tmp_path, "last")
    assert isinstance(model, TransducerModel)
    assert model.transducer == transducer
    audio = [sing(text, seed=i) for i, text in enumerate(tone_texts)]
    search = SearchConfig(method="beam", beam=BeamConfig(size=16))
    found = transcribe(model, audio, search=search)
    assert [one.text for one in found] == tone_texts
    for one, samples in zip(found, audio, strict=True):
        assert np.all(np.diff(one.times_s) > 0)
        assert 0 < one.times_s[0] <= one.times_s[-1] < len(samples) / 16000
        assert -0.5 < one.score < 0
    (alone,) = transcribe(model, audio[:1], search=search)
    assert alone.tokens == found[0].tokens
    assert alone.times_s == found[0].times_s
    greedy = transcribe(model, audio)
    for one, best in zip(greedy, found, strict=True):
        assert one.score < best.score
        assert set(one.tokens) <= set(best.tokens)


def test_a_ctc_run_is_still_one(trained_run):
    assert type(load_asr_model(trained_run)) is AsrModel
