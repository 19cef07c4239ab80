"""Training: it learns, it repeats itself under a seed, and every parameter takes part."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear.zipformer import Zipformer, ZipformerConfig, set_schedule

Build = Callable[..., ZipformerConfig]


def toy_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Features whose loud band of each 80 ms is the class of its frames at 50 Hz."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(4, (6, 10), generator=generator).repeat_interleave(4, dim=1)
    fbank = torch.full((6, 80, 20), -8.0) + torch.randn(6, 80, 20, generator=generator)
    bands = F.one_hot(classes.repeat_interleave(2, dim=1), 4).repeat_interleave(5, dim=2)
    return fbank + 6.0 * bands, torch.tensor([80, 80, 72, 64, 80, 48]), classes


def train(config: ZipformerConfig, num_steps: int, seed: int = 0) -> tuple[list[float], nn.Module]:
    torch.manual_seed(seed)
    model = nn.ModuleDict({"encoder": Zipformer(config), "head": nn.Linear(config.output_dim, 4)})
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    fbank, lens, classes = toy_batch()
    losses = []
    for step in range(num_steps):
        set_schedule(model, 20000.0 + step)
        output = model["encoder"](fbank, lens)
        valid = torch.arange(40) < output.lens[:, None]
        loss = F.cross_entropy(model["head"](output.output)[valid], classes[valid])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model


def test_a_small_task_is_learned(tiny_config: Build) -> None:
    losses, model = train(tiny_config(), 60)
    assert losses[0] > 1.2  # four classes: log 4 is 1.39
    assert sum(losses[-5:]) / 5 < 0.4
    fbank, lens, classes = toy_batch()
    with torch.no_grad():
        output = model.eval()["encoder"](fbank, lens)
        correct = model["head"](output.output).argmax(-1) == classes
    valid = torch.arange(40) < output.lens[:, None]
    assert float(correct[valid].float().mean()) > 0.9


def test_a_seed_fixes_every_bit(tiny_config: Build) -> None:
    (first, model), (second, other) = (train(tiny_config(), 4, seed=7) for _ in range(2))
    assert first == second
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert train(tiny_config(), 4, seed=8)[0] != first


def test_a_run_continues_from_the_state_of_the_generator(tiny_config: Build) -> None:
    """A resumed run needs weights, the count and torch's generator; modules hold no state."""
    fbank, lens, _ = toy_batch()
    torch.manual_seed(3)
    model = Zipformer(tiny_config()).train()
    set_schedule(model, 100.0)
    model(fbank, lens).output.sum().backward()
    state, random_state = model.state_dict(), torch.get_rng_state()
    model.zero_grad()
    model(fbank, lens).output.square().sum().backward()

    resumed = Zipformer(tiny_config()).train()
    resumed.load_state_dict(state)
    set_schedule(resumed, 100.0)
    torch.set_rng_state(random_state)
    resumed(fbank, lens).output.square().sum().backward()
    for (name, ours), theirs in zip(resumed.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("count", [0.0, 50000.0])
def test_every_parameter_gets_a_gradient_in_every_step(
    tiny_config: Build, count: float, causal: bool
) -> None:
    """DDP waits for all of them; at count 0 half of the steps skip the position scores."""
    config = tiny_config(output_downsampling_factor=2, causal=causal)
    torch.manual_seed(0)
    model = Zipformer(config).train()
    set_schedule(model, count)
    fbank, lens, _ = toy_batch()
    for _ in range(6):
        model.zero_grad(set_to_none=True)
        model(fbank, lens).output.square().mean().backward()
        missing = [name for name, p in model.named_parameters() if p.grad is None]
        assert missing == []
        assert all(p.grad.isfinite().all() for p in model.parameters())


def test_training_works_under_bfloat16_autocast(tiny_config: Build) -> None:
    torch.manual_seed(0)
    model = Zipformer(tiny_config()).train()
    fbank, lens, _ = toy_batch()
    for count in (0.0, 4000.0, 30000.0):
        set_schedule(model, count)
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(fbank, lens).output
        assert output.dtype == torch.float32  # the residual stream
        output.square().mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad.dtype == torch.float32, name
            assert parameter.grad.isfinite().all(), name


def test_autocast_changes_the_output_a_little_only(tiny_config: Build) -> None:
    torch.manual_seed(0)
    model = Zipformer(tiny_config()).eval()
    fbank, lens, _ = toy_batch()
    with torch.no_grad():
        exact = model(fbank, lens).output
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(fbank, lens).output
    assert float((exact - half).norm() / exact.norm()) < 0.03


def test_training_mode_without_a_schedule_skips_no_layer(tiny_config: Build) -> None:
    """A user who fine-tunes in a loop of their own gets a mild model, not one of step 0."""
    model = Zipformer(tiny_config())
    layer = model.encoder.encoders[0].layers[0]
    rates = (layer.skip_rate, layer.attention_skip_rate, layer.conv_skip_rate)
    rates += (layer.ff2_skip_rate, layer.ff3_skip_rate, layer.self_attn_weights.pos_emb_skip_rate)
    assert [float(rate) for rate in rates] == [0.0] * 6


def test_feature_masks_agree_between_stacks(tiny_config: Build) -> None:
    torch.manual_seed(0)
    encoder = Zipformer(tiny_config()).train().encoder
    masks = encoder._feature_masks(torch.zeros(4000, 1, 24))
    lower, upper = [], []
    for mask, dim, unmasked in zip(masks, (24, 40, 32), (16, 24, 24), strict=True):
        assert mask.shape == (4000, 1, dim)
        half = unmasked + (dim - unmasked) // 2
        assert (mask[..., :unmasked] == 1).all()
        lower.append(mask[:, 0, unmasked:half].mean(dim=1))
        upper.append(mask[:, 0, half:].mean(dim=1))
    assert all(torch.equal(lower[0], other) for other in lower)
    assert all(torch.equal(upper[0], other) for other in upper)
    assert float(lower[0].mean()) == pytest.approx(0.875, abs=0.02)
    assert float(upper[0].mean()) == pytest.approx(0.875**2, abs=0.025)
    assert (upper[0] <= lower[0]).all()


def test_a_model_that_is_moved_and_copied_still_runs(tiny_config: Build) -> None:
    model = Zipformer(tiny_config()).eval()
    fbank, lens, _ = toy_batch()
    with torch.no_grad():
        expected = model(fbank, lens).output
        double = model.double()(fbank.double(), lens).output
    torch.testing.assert_close(double.float(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("causal", [False, True])
def test_checkpointed_layers_give_the_same_step(tiny_config: Build, causal: bool) -> None:
    model = Zipformer(tiny_config(causal=causal, chunk_size=8, left_context_frames=16)).train()
    set_schedule(model, 100.0)  # when everything is drawn at random
    fbank, lens = torch.randn(3, 60, 20, generator=torch.Generator().manual_seed(1)), [60, 41, 7]
    results = []
    for on in (False, True):
        model.set_checkpointing(on)
        model.zero_grad()
        torch.manual_seed(4)
        output = model(fbank, torch.tensor(lens)).output
        output.square().sum().backward()
        results.append([output, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_checkpointing_keeps_less(tiny_config: Build) -> None:
    model = Zipformer(tiny_config(num_encoder_layers=3)).train()
    fbank, lens = torch.randn(2, 400, 20), torch.tensor([400, 400])
    kept = []
    for on in (False, True):
        model.set_checkpointing(on)
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(fbank, lens).output
        del output
        kept.append(sum(storages.values()))
    assert kept[1] < 0.5 * kept[0]


@torch.no_grad()
def test_compiled_equals_eager_at_every_length(tiny_config: Build) -> None:
    torch.manual_seed(0)
    model = Zipformer(tiny_config()).eval()
    compiled = torch.compile(model, dynamic=True, backend="aot_eager")
    for batch_size, num_frames in ((2, 40), (3, 57), (2, 131)):
        fbank = torch.randn(batch_size, num_frames, 20)
        lens = torch.tensor([num_frames, *range(20, 20 + batch_size - 1)])
        ours, plain = compiled(fbank, lens), model(fbank, lens)
        assert torch.equal(ours.lens, plain.lens)
        torch.testing.assert_close(ours.output, plain.output, atol=1e-5, rtol=1e-5)
