from __future__ import annotations

import pytest
import torch
from torch import nn

from intune.errors import ConfigError
from intune.workloads.sequences.attention import Block, BlockConfig, attend_to, initialise


def reference(config: BlockConfig, block: Block) -> nn.TransformerEncoderLayer:
    """Torch's own layer with the block's weights."""
    layer = nn.TransformerEncoderLayer(
        config.width,
        config.heads,
        config.feed_forward,
        dropout=0.0,
        activation=config.activation,
        norm_first=config.norm == "pre",
        layer_norm_eps=config.eps,
        batch_first=True,
    )
    pairs = {
        "self_attn.in_proj_weight": block.attention.projection.weight,
        "self_attn.in_proj_bias": block.attention.projection.bias,
        "self_attn.out_proj.weight": block.attention.output.weight,
        "self_attn.out_proj.bias": block.attention.output.bias,
        "linear1.weight": block.expand.weight,
        "linear1.bias": block.expand.bias,
        "linear2.weight": block.contract.weight,
        "linear2.bias": block.contract.bias,
        "norm1.weight": block.attention_norm.weight,
        "norm1.bias": block.attention_norm.bias,
        "norm2.weight": block.feed_forward_norm.weight,
        "norm2.bias": block.feed_forward_norm.bias,
    }
    layer.load_state_dict({name: value.detach() for name, value in pairs.items()})
    return layer


def randomised(config: BlockConfig) -> Block:
    block = Block(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(0, 0.4, generator=generator)
    return block


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_a_block_equals_torchs_encoder_layer_values_and_gradients(norm: str, activation: str) -> None:
    config = BlockConfig(width=12, heads=3, feed_forward=20, norm=norm, activation=activation)  # type: ignore[arg-type]
    block = randomised(config)
    layer = reference(config, block)
    x = torch.randn(4, 6, 12, generator=torch.Generator().manual_seed(2))
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    made, expected = block(mine), layer(theirs)
    torch.testing.assert_close(made, expected)
    made.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(block.expand.weight.grad, layer.linear1.weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_is_masked_as_torchs_key_padding_mask_does(causal: bool) -> None:
    config = BlockConfig(width=8, heads=2, feed_forward=16, causal=causal)
    block = randomised(config)
    layer = reference(config, block)
    present = torch.tensor([[False, False, True, True, True], [True] * 5])
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3))
    made = block(x, attend_to(present, causal=causal))
    mask = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1) if causal else None
    expected = layer(x, src_mask=mask, src_key_padding_mask=~present)
    torch.testing.assert_close(made[present], expected[present])
    assert torch.isfinite(made).all(), "padded positions attend to themselves"


def test_a_causal_block_given_step_by_step_is_the_block_given_at_once() -> None:
    config = BlockConfig(width=8, heads=2, feed_forward=16, causal=True, norm="pre")
    block = randomised(config)
    x = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(4))
    whole = block(x)
    first, cache = block.step(x[:, :4], None, None)
    pieces = [first]
    for place in (4, 5):
        piece, cache = block.step(x[:, place : place + 1], None, cache)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


def test_dropout_is_there_in_training_only() -> None:
    block = randomised(BlockConfig(width=8, heads=2, feed_forward=16, dropout=0.5))
    x = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(5))
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_with_dropout_is_torchs_where_hardly_anything_is_dropped(
    causal: bool, padded: bool
) -> None:
    shape = {"width": 8, "heads": 2, "feed_forward": 16, "causal": causal}
    plain, dropping = Block(BlockConfig(**shape)), Block(BlockConfig(**shape, dropout=1e-9))
    dropping.load_state_dict(plain.state_dict())
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(6))
    present = torch.tensor([[True] * 5, [False, False, True, True, True], [False] * 4 + [True]])
    allowed = attend_to(present, causal=causal) if padded else None
    torch.testing.assert_close(dropping(x, allowed), plain(x, allowed))


def test_a_remainder_of_the_width_is_not_attended_with() -> None:
    config = BlockConfig(width=208, heads=3, feed_forward=16)
    block = Block(config)
    assert config.attended == 207
    assert block.attention.projection.weight.shape == (3 * 207, 208)
    assert block(torch.randn(2, 4, 208)).shape == (2, 4, 208)


def test_initialisation_is_the_seeds_and_within_two_deviations() -> None:
    def make(seed: int) -> Block:
        block = Block(BlockConfig(width=64, heads=2, feed_forward=128))
        initialise(block.modules(), torch.Generator().manual_seed(seed), std=0.1)
        return block

    one, same, other = make(1), make(1), make(2)
    assert torch.equal(one.expand.weight, same.expand.weight)
    assert not torch.equal(one.expand.weight, other.expand.weight)
    assert one.expand.weight.abs().max() <= 0.2
    # A normal cut at two deviations has a standard deviation of 0.88 of the whole one's.
    assert one.expand.weight.std().item() == pytest.approx(0.088, rel=0.05)
    assert not one.expand.bias.any()


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"heads": 9}, "heads"),
        ({"width": 0}, "width"),
        ({"dropout": 1.0}, "dropout"),
        ({"feed_forward": 0}, "feed_forward"),
    ],
)
def test_shapes_that_make_no_sense_are_refused(wrong: dict[str, float], name: str) -> None:
    with pytest.raises(ConfigError, match=f"`{name}`"):
        BlockConfig(**{"width": 8, "heads": 2, "feed_forward": 16, **wrong})  # type: ignore[arg-type]
