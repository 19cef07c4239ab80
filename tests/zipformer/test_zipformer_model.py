"""The whole encoder: batch invariance, lengths, sizes, and what it refuses."""

from collections.abc import Callable

import pytest
import torch

from spear.errors import DataError
from spear.zipformer import Zipformer, ZipformerConfig

Build = Callable[..., ZipformerConfig]


def randomised(config: ZipformerConfig, seed: int = 0) -> Zipformer:
    """A model whose weights are far from initial, so that no branch is negligible."""
    torch.manual_seed(seed)
    model = Zipformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def fbank_like(*shape: int) -> torch.Tensor:
    return torch.randn(*shape) * 3.0 - 8.0


VARIANTS = {
    "padded": {},
    "unpadded": {"frontend_pad": False},
    "25 Hz": {"output_downsampling_factor": 2},
    "causal": {"causal": True},
    "chunks": {"causal": True, "chunk_size": 8, "left_context_frames": 16},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_output_and_hidden_states_do_not_depend_on_batch_mates(
    tiny_config: Build, changes: dict[str, object]
) -> None:
    model = randomised(tiny_config(**changes))
    lens = torch.tensor([97, 9, 64, 2 if model.config.frontend_pad else 10, 33, 50])
    fbank = fbank_like(len(lens), 101, 20)
    batched = model(fbank, lens)
    for index, length in enumerate(lens.tolist()):
        alone = model(fbank[index : index + 1, :length], lens[index : index + 1])
        num_frames = int(alone.lens)
        assert num_frames == batched.lens[index] == alone.output.shape[1]
        torch.testing.assert_close(
            batched.output[index, :num_frames], alone.output[0], atol=1e-4, rtol=0.0
        )
        for ours, theirs in zip(batched.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(
                ours[index, : theirs.shape[1]], theirs[0], atol=1e-4, rtol=0.0
            )


@torch.no_grad()
def test_what_padding_holds_is_never_looked_at(tiny_config: Build) -> None:
    model = randomised(tiny_config())
    lens = torch.tensor([60, 31])
    fbank = fbank_like(2, 60, 20)
    clean = model(fbank, lens).output[1, :15]
    fbank[1, 31:] = float("nan")
    assert torch.equal(model(fbank, lens).output[1, :15], clean)


@pytest.mark.parametrize(("num_fbank", "num_frames"), [(1, 0), (2, 1), (5, 2), (8, 4), (9, 4)])
@torch.no_grad()
def test_padded_front_end_gives_half_as_many_frames(
    tiny_config: Build, num_fbank: int, num_frames: int
) -> None:
    model = randomised(tiny_config())
    output = model(fbank_like(1, num_fbank, 20), torch.tensor([num_fbank]))
    assert model.num_output_frames(num_fbank) == num_frames
    assert output.output.shape == (1, num_frames, 40)
    assert output.lens.tolist() == [num_frames]
    assert [state.shape[1:] for state in output.hidden_states] == [
        (num_frames, dim) for dim in (24, 40, 40, 32)
    ]
    assert output.output.isfinite().all()


@pytest.mark.parametrize(("num_fbank", "num_frames"), [(5, 0), (8, 0), (9, 1), (107, 50)])
@torch.no_grad()
def test_published_front_end_loses_seven_frames(
    tiny_config: Build, num_fbank: int, num_frames: int
) -> None:
    model = randomised(tiny_config(frontend_pad=False))
    output = model(fbank_like(1, num_fbank, 20), torch.tensor([num_fbank]))
    assert output.lens.tolist() == [num_frames] == [model.num_output_frames(num_fbank)]
    assert output.output.shape[1] == num_frames


@torch.no_grad()
def test_an_utterance_without_frames_leaves_the_others_alone(tiny_config: Build) -> None:
    model = randomised(tiny_config())
    fbank = fbank_like(2, 40, 20)
    with_empty = model(fbank, torch.tensor([40, 1]))
    assert with_empty.lens.tolist() == [20, 0]
    alone = model(fbank[:1], torch.tensor([40])).output[0]
    torch.testing.assert_close(with_empty.output[0], alone, atol=1e-5, rtol=0.0)


def test_output_frames_at_25_hz_are_rounded_up(tiny_config: Build) -> None:
    model = Zipformer(tiny_config(output_downsampling_factor=2))
    assert [model.num_output_frames(n) for n in (0, 2, 4, 6)] == [0, 1, 1, 2]


@torch.no_grad()
def test_a_chunked_model_does_not_look_beyond_its_chunk(tiny_config: Build) -> None:
    model = randomised(tiny_config(causal=True, chunk_size=8, left_context_frames=16))
    x = torch.randn(1, 40, 24)
    changed = x.clone()
    changed[:, 16:] += 1.0  # from the third chunk on
    lens = torch.tensor([40])
    before, after = model.encoder(x, lens).output, model.encoder(changed, lens).output
    assert torch.equal(before[:, :16], after[:, :16])
    assert not torch.allclose(before[:, 16:], after[:, 16:])


@torch.no_grad()
def test_chunk_choices_are_drawn_in_training_and_fixed_in_evaluation(tiny_config: Build) -> None:
    model = Zipformer(tiny_config(causal=True, chunk_size=(4, 8, -1), left_context_frames=(16, 4)))
    drawn = {model.encoder._draw_chunks() for _ in range(60)}
    assert drawn == {(4, 4), (8, 2), (4, 1), (8, 1), (-1, -1)}
    assert {model.eval().encoder._draw_chunks() for _ in range(10)} == {(-1, -1)}


@pytest.mark.parametrize(
    ("fbank", "lens", "message"),
    [
        (torch.zeros(2, 10, 19), torch.tensor([10, 10]), r"expected \(batch, frames, 20\)"),
        (torch.zeros(10, 20), torch.tensor([10]), r"shape \(10, 20\)"),
        (torch.zeros(2, 10, 20), torch.tensor([10]), "for 2 utterances"),
        (torch.zeros(2, 10, 20), torch.tensor([10, 11]), "above the 10 frames"),
    ],
)
def test_input_that_does_not_fit_is_refused(
    tiny_config: Build, fbank: torch.Tensor, lens: torch.Tensor, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Zipformer(tiny_config())(fbank, lens)


@pytest.mark.parametrize(
    ("name", "millions"), [("tiny", 8.09), ("base", 93.29), ("large", 326.95), ("xlarge", 596.97)]
)
def test_named_models_have_their_number_of_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = Zipformer(ZipformerConfig.named(name))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.02)
    assert model.output_dim == max(model.config.encoder_dim)
