"""The model of pre-training: names of its parameters, masking, terms, what each clip teaches."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spear.encoders.frame_grid import StudentFrames
from spear.errors import ConfigError
from spear.pretrain.collate import Collator, Example, TokenLayout
from spear.pretrain.losses import LossConfig
from spear.pretrain.masking import MaskConfig, MaskSampler
from spear.pretrain.model import PretrainModel, TeacherTarget, mask_features
from spear.system.distributed import Ranks
from spear.training.logs.metrics import MetricSums
from spear.zipformer import Zipformer, ZipformerConfig, set_schedule
from tests.pretrain.small_shards import CODEBOOKS, make_clip

TEACHERS = {
    "wavlm": TeacherTarget("speech", 4, 16, 50.0),
    "dasheng": TeacherTarget("audio", 2, 16, 25.0),
}


def small_student(**changes):
    return ZipformerConfig(
        **{
            "feature_dim": 32,
            "downsampling_factor": (1, 2),
            "encoder_dim": (32, 48),
            "num_encoder_layers": (1, 1),
            "encoder_unmasked_dim": (16, 24),
            "num_heads": (2,),
            "query_head_dim": (8,),
            "value_head_dim": (8,),
            "feedforward_dim": (48,),
            "cnn_module_kernel": (7,),
            "pos_dim": 16,
            "embed_channels": (4, 8, 16),
            **changes,
        }
    )


def make_model(seed=0, loss=None, **student):
    torch.manual_seed(seed)
    model = PretrainModel(small_student(**student), TEACHERS, loss or LossConfig())
    set_schedule(model, 0.0)
    return model


def make_batch(num_speech=3, num_audio=2, frontend_pad=True):
    layouts = {"wavlm": TokenLayout(4), "dasheng": TokenLayout(2, repeat=2)}
    masks = MaskSampler(MaskConfig(), 32)
    collator = Collator(layouts, StudentFrames(frontend_pad), masks, 32)
    examples = []
    for number, domain in enumerate(["speech"] * num_speech + ["audio"] * num_audio):
        clip = make_clip(number, domain)
        names = CODEBOOKS if domain == "audio" else ["wavlm"]
        tokens = {name: clip["tokens"][name] for name in names}
        examples.append(Example(clip["id"], clip["audio"], domain == "audio", tokens))
    return collator(examples, 5.0, np.random.default_rng(0))


def test_its_parameters_are_an_encoders_with_a_mask_vector_and_heads():
    names = set(make_model().state_dict())
    own = Zipformer(small_student()).state_dict()
    assert all(name.startswith(("encoder_embed.", "encoder.")) for name in own)
    encoder = {f"encoder.{name}" for name in own}
    heads = {f"heads.{t}.{kind}" for t in TEACHERS for kind in ("weight", "bias")}
    assert names == encoder | heads | {"mask_emb"}


def test_base_heads_have_the_published_sizes():
    """lessons: 2.10 M parameters for the speech head of Base, half of it for audio."""
    teachers = {"s": TeacherTarget("speech", 16, 256), "a": TeacherTarget("audio", 8, 256, 25.0)}
    with torch.device("meta"):
        model = PretrainModel(ZipformerConfig.named("base"), teachers, LossConfig())
    count = {name: sum(p.numel() for p in head.parameters()) for name, head in model.heads.items()}
    assert count == {"s": 2_101_248, "a": 1_050_624}


@pytest.mark.parametrize("frontend_pad", [True, False])
def test_its_frames_are_the_students(frontend_pad):
    model = make_model(frontend_pad=frontend_pad)
    for num_frames in range(9, 60):
        assert model.frames.count(num_frames) == model.encoder.num_output_frames(num_frames)
    batch = make_batch(frontend_pad=frontend_pad)
    assert model.encode(batch).shape[:2] == batch.student_mask.shape


def test_masking_replaces_frames_then_bins_and_nothing_else():
    torch.manual_seed(0)
    fbank, vector = torch.randn(2, 6, 4), torch.randn(4)
    mask, bins = torch.rand(2, 6) < 0.5, torch.rand(2, 4) < 0.4
    hidden = mask_features(fbank, mask, bins, vector, channel_mask_value=-3.0)
    for b in range(2):
        for t in range(6):
            for m in range(4):
                expected = vector[m] if mask[b, t] else fbank[b, t, m]
                expected = torch.tensor(-3.0) if bins[b, m] else expected
                assert hidden[b, t, m] == expected


def test_the_student_never_sees_what_is_masked():
    model = make_model().eval()
    batch = make_batch()
    before = model.encode(batch)
    changed = batch.fbank.clone()
    changed[batch.mask] += 5.0
    changed += 7.0 * batch.channel_mask.unsqueeze(1)
    batch.fbank = changed
    assert torch.equal(model.encode(batch), before)


def test_terms_are_counted_in_valid_frames_times_codebooks_and_weighted():
    model, batch = make_model(loss=LossConfig(audio_weight=0.1)).eval(), make_batch()
    output = model(batch)
    for name, target in TEACHERS.items():
        count = batch.token_valid[name].sum() * target.num_codebooks
        assert output.terms[name].count == count > 0
    assert output.terms["wavlm"].weight == 1.0
    assert output.terms["dasheng"].weight == 0.1


def test_terms_equal_the_formula_over_valid_frames():
    model, batch = make_model(loss=LossConfig(alpha=0.7)).eval(), make_batch()
    output, hidden = model(batch), model.encode(batch)
    for name, target in TEACHERS.items():
        logits = model.heads[name](hidden).unflatten(2, (-1, target.codebook_size))
        total, right, masked = 0.0, 0, 0
        for b, t in batch.token_valid[name].nonzero().tolist():
            weight = 0.7 if batch.student_mask[b, t] else 0.3
            log_probs = logits[b, t].log_softmax(-1)
            tokens = batch.tokens[name][b, t].long()
            total -= weight * log_probs.gather(1, tokens[:, None]).sum().item()
            if batch.student_mask[b, t]:
                masked += len(tokens)
                right += (log_probs.argmax(-1) == tokens).sum().item()
        assert output.terms[name].total.item() == pytest.approx(total, rel=1e-4)
        metric = output.metrics[f"{name}_masked_accuracy"]
        assert (metric.total.item(), metric.count.item()) == (right, masked)


def test_every_parameter_gets_a_gradient_also_without_audio_clips():
    model = make_model().train()
    output = model(make_batch(num_audio=0))
    sum(term.weight * term.total for term in output.terms.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert output.terms["dasheng"].count == 0
    assert not model.heads["dasheng"].weight.grad.any()
    assert model.heads["wavlm"].weight.grad.any() and model.mask_emb.grad.any()


def test_the_baseline_is_that_of_the_tokens_set():
    model, batch = make_model().eval(), make_batch()
    frequent = torch.tensor([3, 4, 5, 6])
    model.set_token_counts("wavlm", torch.nn.functional.one_hot(frequent, 16) * 9)
    metric = model(batch).metrics["wavlm_baseline_accuracy"]
    chosen = batch.token_valid["wavlm"] & batch.student_mask
    assert metric.total == (batch.tokens["wavlm"][chosen] == frequent).sum()
    assert metric.count == chosen.sum() * 4


def test_each_codebook_has_its_numbers_and_evaluation_the_use_of_tokens():
    model, batch = make_model(), make_batch()
    in_training, in_evaluation = model.train()(batch).metrics, model.eval()(batch).metrics
    for name, target in TEACHERS.items():
        metric = in_training[f"{name}_codebook_masked_loss(nats)"]
        assert metric.total.shape == (target.num_codebooks,)
        table = in_evaluation[f"{name}_target_tokens"]
        assert table.total.shape == (target.num_codebooks, 16)
        assert table.total.sum() == table.count * target.num_codebooks
        assert f"{name}_target_tokens" not in in_training


def test_padding_is_the_share_of_frames_after_the_ends_of_clips():
    metric = make_model().train()(make_batch()).metrics["data/padding(%)"]
    lens = make_batch().fbank_lens.tolist()
    expected = 100 * (1 - sum(lens) / (len(lens) * max(lens)))
    assert (metric.total / metric.count).item() == pytest.approx(expected, rel=1e-5)
    assert "data/padding(%)" not in make_model().eval()(make_batch()).metrics


class RefusesToWait(TorchDispatchMode):
    """Raises where a GPU would be waited for: a number is read, or comes from Python's memory."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "lift_fresh"}:
            raise AssertionError(f"a GPU waits for {func}")
        if name in {"index", "index_put", "index_put_"}:
            indexes = [index for index in args[1] if index is not None]
            assert not any(index.dtype == torch.bool for index in indexes), "a GPU waits for a mask"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: torch.tensor(1.0) + x,
        lambda x: x.new_tensor(1.0),
    ],
)
def test_waiting_would_be_noticed(waits):
    with pytest.raises(AssertionError, match="a GPU waits"), RefusesToWait():
        waits(torch.ones(3))


def test_losses_and_metrics_of_a_step_wait_for_nothing(monkeypatch):
    model, batch = make_model().train(), make_batch()
    hidden = model.encode(batch)  # which looks at lengths on a CPU, and only there
    monkeypatch.setattr(model, "encode", lambda batch: hidden)
    sums = MetricSums(Ranks(torch.device("cpu")))
    is_good = torch.tensor(True)
    with RefusesToWait():
        output = model(batch)
        sum(term.weight * term.total for term in output.terms.values()).backward()
        sums.add_output(output, is_good)
        sums.add("optim/grad_norm", 1.5)
    assert sums.values()["wavlm_loss"] > 0


def test_a_clips_targets_do_not_depend_on_its_batch_mates():
    model = make_model().eval()
    batch = make_batch(3, 0)
    whole = model.encode(batch)
    alone = model.encode(make_batch(1, 0))
    # The clip is the first of both batches, but its mask is drawn with theirs: no masks here.
    batch.mask[:] = False
    batch.channel_mask[:] = False
    single = make_batch(1, 0)
    single.mask[:] = False
    single.channel_mask[:] = False
    whole, alone = model.encode(batch), model.encode(single)
    torch.testing.assert_close(whole[0, : alone.size(1)], alone[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrong", [{"num_codebooks": 0}, {"codebook_size": 65_537}])
def test_tokens_are_one_byte_or_two(wrong):
    with pytest.raises(ConfigError):
        TeacherTarget("speech", **wrong)
