"""The transducer's searches against plain loops, and a stream against the whole."""

import itertools
import math

import pytest
import torch
from torch import nn

from spear.asr.ctc import Hypothesis
from spear.asr.search.transducer_search import TransducerGreedy, beam_search, greedy_search
from spear.asr.transducer_modules import Decoder, Joiner
from spear.errors import ConfigError
from spear.zipformer import Zipformer, ZipformerConfig
from spear.zipformer.schedule import TRAINED, set_schedule
from spear.zipformer.streaming import ZipformerStream

DIM = 6


def make_networks(vocab_size=5, blank_bias=0.0, seed=0, encoder_dim=DIM):
    """A decoder and a joiner that have opinions."""
    torch.manual_seed(seed)
    decoder = Decoder(vocab_size, 8, context_size=2).eval()
    joiner = Joiner(encoder_dim, 8, 7, vocab_size).eval()
    with torch.no_grad():
        for layer in (joiner.encoder_proj, joiner.decoder_proj, joiner.output_linear):
            nn.init.normal_(layer.weight, std=1.0)
        joiner.output_linear.bias[0] += blank_bias
    return decoder, joiner


def log_probs_of(decoder, joiner, frame, labels):
    """(V,) after these labels at this frame (D,)."""
    context = torch.tensor([[-1, 0, *labels][-2:]])
    decoded = joiner.decoder_proj(decoder(context))[0, 0]
    return joiner(joiner.encoder_proj(frame), decoded).log_softmax(-1)


def plain_greedy(decoder, joiner, frames, max_symbols):
    tokens, times, score = [], [], 0.0
    for t, frame in enumerate(frames):
        for _ in range(max_symbols):
            log_probs = log_probs_of(decoder, joiner, frame, tokens)
            best = int(log_probs.argmax())
            score += float(log_probs[best])
            if best == 0:
                break
            tokens.append(best)
            times.append(t)
    return Hypothesis(tokens, times, score)


def all_transcripts(decoder, joiner, frames):
    """The log-probability of every transcript, at most one label a frame."""
    vocab_size = joiner.output_linear.out_features
    found = {}
    for path in itertools.product(range(vocab_size), repeat=len(frames)):
        labels, score = [], 0.0
        for frame, token in zip(frames, path, strict=True):
            score += float(log_probs_of(decoder, joiner, frame, labels)[token])
            labels += [token] if token else []
        found.setdefault(tuple(labels), []).append(score)
    return {key: float(torch.tensor(one).logsumexp(0)) for key, one in found.items()}


@pytest.mark.parametrize("max_symbols", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_greedy_is_a_plain_loop_over_frames(max_symbols, seed):
    networks = make_networks(blank_bias=1.5, seed=seed)
    frames = torch.randn(4, 12, DIM)
    lens = torch.tensor([12, 7, 0, 1])
    found = greedy_search(*networks, frames, lens, max_symbols)
    assert any(one.tokens for one in found)
    for one, own, length in zip(found, frames, lens.tolist(), strict=True):
        with torch.no_grad():
            expected = plain_greedy(*networks, own[:length], max_symbols)
        assert (one.tokens, one.frames) == (expected.tokens, expected.frames)
        assert one.score == pytest.approx(expected.score, abs=1e-4)


def test_a_frame_has_room_for_so_many_labels():
    networks = make_networks(blank_bias=-50.0)
    frames = torch.randn(1, 3, DIM)
    (found,) = greedy_search(*networks, frames, torch.tensor([3]), max_symbols=2)
    assert found.frames == [0, 0, 1, 1, 2, 2]


def test_a_wide_beam_finds_every_transcript_with_its_probability():
    networks = make_networks(vocab_size=3)
    frames = torch.randn(1, 4, DIM)
    with torch.no_grad():
        expected = all_transcripts(*networks, frames[0])
    (found,) = beam_search(
        *networks,
        frames,
        torch.tensor([4]),
        size=100,
        num_best=100,
        normalize_length=False,
    )
    assert {tuple(one.tokens): pytest.approx(one.score, abs=1e-4) for one in found} == expected
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert sum(math.exp(one.score) for one in found) == pytest.approx(1.0, abs=1e-4)
    for one in found:
        assert one.frames == sorted(set(one.frames))
        assert len(one.frames) == len(one.tokens)


@pytest.mark.parametrize("seed", range(4))
def test_a_beam_of_one_is_greedy_with_one_label_a_frame(seed):
    networks = make_networks(blank_bias=1.0, seed=seed)
    frames = torch.randn(3, 10, DIM)
    lens = torch.tensor([10, 4, 0])
    greedy = greedy_search(*networks, frames, lens, max_symbols=1)
    beam = beam_search(*networks, frames, lens, size=1)
    for one, (other,) in zip(greedy, beam, strict=True):
        assert (one.tokens, one.frames) == (other.tokens, other.frames)
        assert one.score == pytest.approx(other.score, abs=1e-4)


def test_a_wider_beam_is_never_less_probable():
    networks = make_networks(blank_bias=1.0, seed=5)
    frames, lens = torch.randn(6, 20, DIM), torch.full((6,), 20)
    options = {"normalize_length": False}
    narrow = beam_search(*networks, frames, lens, size=1, **options)
    wide = beam_search(*networks, frames, lens, size=8, **options)
    gains = [two.score - one.score for (one,), (two,) in zip(narrow, wide, strict=True)]
    assert min(gains) > -1e-4
    assert max(gains) > 0.1


def test_searches_do_not_depend_on_batch_mates():
    networks = make_networks(blank_bias=1.0)
    frames, lens = torch.randn(4, 15, DIM), torch.tensor([15, 3, 9, 0])
    together = beam_search(*networks, frames, lens, size=4, num_best=3)
    for i, length in enumerate(lens.tolist()):
        frames[i, length:] = float("nan")
        alone = beam_search(
            *networks, frames[i : i + 1, :length], lens[i : i + 1], size=4, num_best=3
        )
        assert [(one.tokens, one.frames) for one in alone[0]] == [
            (one.tokens, one.frames) for one in together[i]
        ]
    assert len(together[0]) == 3
    assert len({tuple(one.tokens) for one in together[0]}) == 3
    assert [one.tokens for one in together[3]] == [[]]
    again = greedy_search(*networks, frames, lens)
    assert [one.tokens for one in again] == [
        one.tokens for one in greedy_search(*networks, frames.nan_to_num(), lens)
    ]


def test_length_normalisation_orders_by_score_per_label():
    networks = make_networks(blank_bias=0.5)
    frames, lens = torch.randn(1, 12, DIM), torch.tensor([12])
    options = {"size": 6, "num_best": 6}
    (by_label,) = beam_search(*networks, frames, lens, **options)
    (by_score,) = beam_search(*networks, frames, lens, normalize_length=False, **options)
    assert sorted(one.score for one in by_label) == sorted(one.score for one in by_score)
    rates = [one.score / (len(one.tokens) + 2) for one in by_label]
    assert rates == sorted(rates, reverse=True)


def test_what_makes_no_sense_is_refused():
    networks = make_networks()
    frames, lens = torch.randn(1, 2, DIM), torch.tensor([2])
    with pytest.raises(ConfigError, match="beam of 0"):
        beam_search(*networks, frames, lens, size=0)
    with pytest.raises(ConfigError, match="max_symbols is 0"):
        greedy_search(*networks, frames, lens, max_symbols=0)


def small_causal(**changes):
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
        chunk_size=(8,),
        left_context_frames=(16,),
        **changes,
    )


@pytest.mark.parametrize("pieces", [[1] * 130, [37, 0, 50, 43], [130]])
@pytest.mark.parametrize("factor", [1, 2])
def test_a_stream_finds_what_the_whole_has(pieces, factor):
    torch.manual_seed(3)
    encoder = Zipformer(small_causal(causal=True, output_downsampling_factor=factor)).eval()
    set_schedule(encoder, TRAINED)
    networks = make_networks(blank_bias=0.5, encoder_dim=encoder.output_dim)
    fbank = 3.0 * torch.randn(130, 20)
    with torch.no_grad():
        whole = encoder(fbank.unsqueeze(0), torch.tensor([130]))
        # Frames of an untrained encoder are much alike: what differs is made larger.
        projection = networks[1].encoder_proj
        projection.weight *= 2.0 / whole.output.std(dim=1).mean()
        projection.bias.copy_(-projection.weight @ whole.output.mean((0, 1)))
    (expected,) = greedy_search(*networks, whole.output, whole.lens)
    assert len(expected.tokens) > 5

    stream, search = ZipformerStream(encoder), TransducerGreedy(*networks, batch_size=1)
    so_far = Hypothesis([], [])
    for frames in (*map(stream.push, fbank.split(pieces)), stream.finish()):
        search.read(frames.unsqueeze(0), torch.tensor([len(frames)]))
        (found,) = search.results()
        assert found.tokens[: len(so_far.tokens)] == so_far.tokens
        so_far = found
    assert (found.tokens, found.frames) == (expected.tokens, expected.frames)
    assert found.score == pytest.approx(expected.score, rel=1e-3)


def test_parts_are_read_as_one():
    networks = make_networks(blank_bias=1.5, seed=2)
    frames, lens = torch.randn(3, 50, DIM), torch.tensor([50, 20, 31])
    whole = greedy_search(*networks, frames, lens)
    search = TransducerGreedy(*networks, batch_size=3)
    for start in range(0, 50, 7):
        part = frames[:, start : start + 7]
        search.read(part, (lens - start).clamp(0, part.size(1)))
    for one, other in zip(search.results(), whole, strict=True):
        assert (one.tokens, one.frames) == (other.tokens, other.frames)
        assert one.score == pytest.approx(other.score, abs=1e-3)
