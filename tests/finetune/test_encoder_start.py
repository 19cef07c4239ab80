"""The encoder's start in a fine-tuned model: weights, freezing, rates."""

import dataclasses

import pytest
import torch
from torch import nn

from spear.errors import CheckpointError, ConfigError
from spear.finetune.encoder import (
    EncoderPace,
    EncoderStart,
    is_of_encoder,
    load_encoder,
    resolve_student,
)
from spear.training.position import Position
from spear.zipformer import Zipformer, ZipformerConfig

SMALL = ZipformerConfig(
    feature_dim=40,
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
    embed_channels=(2, 4, 4),
)


def with_head(factor=1, seed=0):
    torch.manual_seed(seed)
    model = nn.Module()
    model.encoder = Zipformer(dataclasses.replace(SMALL, output_downsampling_factor=factor))
    model.some_head = nn.Linear(16, 3)
    return model


def pretrained(factor=1, seed=1):
    return {**with_head(factor, seed).encoder.state_dict(), "mask_emb": torch.zeros(40)}


def test_the_encoder_is_loaded_and_the_head_stays():
    model, state = with_head(), pretrained()
    head = model.some_head.weight.clone()
    load_encoder(model, state, "somewhere")
    assert torch.equal(model.some_head.weight, head)
    own = model.encoder.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in own)


@pytest.mark.parametrize(("own", "theirs"), [(1, 2), (2, 1)])
def test_models_start_from_encoders_of_another_output_rate(own, theirs):
    model, state = with_head(own), pretrained(theirs)
    load_encoder(model, state, "somewhere")
    name = "encoder_embed.out.weight"
    assert torch.equal(model.encoder.state_dict()[name], state[name])


def test_other_encoders_are_refused():
    state = pretrained()
    del state["encoder_embed.out.weight"]
    with pytest.raises(CheckpointError, match=r"somewhere .* encoder_embed\.out\.weight"):
        load_encoder(with_head(), state, "somewhere")
    with pytest.raises(CheckpointError, match="some_head"):
        load_encoder(with_head(), pretrained() | {"some_head2": torch.zeros(1)}, "x")


def test_the_encoder_is_frozen_for_so_many_steps_whenever_a_run_goes_on():
    model = with_head()
    pace = EncoderPace(model, EncoderStart(freeze_steps=2))
    assert [pace.before_step(Position(step=step)) for step in range(4)] == [
        True,
        False,
        True,
        False,
    ]
    assert all(parameter.requires_grad for parameter in model.parameters())
    resumed = EncoderPace(with_head(), EncoderStart(freeze_steps=2))
    assert resumed.before_step(Position(step=1))
    trained = {n for n, p in resumed.model.named_parameters() if p.requires_grad}
    assert trained == {"some_head.weight", "some_head.bias"}


def test_encoder_and_head_have_their_own_rates():
    encoder, head = EncoderPace(with_head(), EncoderStart(lr_scale=0.05)).parameter_groups()
    assert (encoder["lr_scale"], head["lr_scale"]) == (0.05, 1.0)
    assert [name for name, _ in head["named_params"]] == ["some_head.weight", "some_head.bias"]
    assert all(is_of_encoder(name) for name, _ in encoder["named_params"])


def test_the_architecture_is_what_is_described_where_no_model_is_named():
    assert resolve_student(None, None, SMALL) is SMALL
    with pytest.raises(CheckpointError, match="neither a model folder"):
        resolve_student("no/such/folder/x", None, SMALL)


def test_impossible_starts_are_refused():
    with pytest.raises(ConfigError, match="freeze_encoder_steps"):
        EncoderStart(freeze_steps=-1)
    with pytest.raises(ConfigError, match="encoder_lr_scale"):
        EncoderStart(lr_scale=0.0)
