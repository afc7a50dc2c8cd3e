"""Our backbone with Hugging Face's weights gives what Hugging Face's OPT gave (tools/make_golden.py)."""

import numpy as np
import pytest
from small_models import assert_close

BATCHES = ("unpadded", "right", "left")


def inputs_of(golden, batch):
    return {name: golden[f"{batch}/{name}"] for name in ("token_ids", "padding_mask")}


def real_tokens(golden, batch):
    return golden[f"{batch}/padding_mask"].astype(bool)


def run_by_layer(backbone, inputs):
    """Hidden states after the embeddings and each layer, and each layer's attention maps."""
    x = backbone.embed(inputs["token_ids"], inputs["padding_mask"])
    hidden_states, maps = [x], []
    for layer in backbone.transformer_layers:
        x, scores = layer(x, decoder_padding_mask=inputs["padding_mask"], return_attention_scores=True)
        hidden_states.append(x)
        maps.append(scores)
    return hidden_states, maps


def decoder_output(backbone, output):
    """What Hugging Face's decoder returns: in OPT-350m it projects to the width of the token table, we in the head."""
    projected = backbone.embedding_dim != backbone.hidden_dim
    return np.asarray(backbone.token_embedding.project_out(output) if projected else output)


@pytest.fixture
def backbone_for(golden_backbone, golden_backbone_mask_positions):
    """The option that Hugging Face's numbers need: positions follow the mask only where padding is on the left."""
    return lambda batch: golden_backbone_mask_positions if batch == "left" else golden_backbone


@pytest.mark.parametrize("batch", BATCHES)
def test_hidden_state_of_every_layer(golden, backbone_for, batch):
    hidden_states, _ = run_by_layer(backbone_for(batch), inputs_of(golden, batch))
    expected = golden[f"{batch}/hidden_states"]
    assert len(hidden_states) == len(expected) == 4
    for ours, theirs in zip(hidden_states, expected):
        assert_close(ours, theirs, where=real_tokens(golden, batch))


@pytest.mark.parametrize("batch", BATCHES)
def test_attention_maps_of_every_layer(golden, backbone_for, batch):
    _, maps = run_by_layer(backbone_for(batch), inputs_of(golden, batch))
    expected = golden[f"{batch}/attention_maps"]
    assert len(maps) == len(expected) == 3
    for ours, theirs in zip(maps, expected):
        ours, theirs = (np.swapaxes(array, 1, 2) for array in (ours, theirs))  # (batch, T, heads, S)
        assert_close(ours, theirs, where=real_tokens(golden, batch))


@pytest.mark.parametrize("batch", BATCHES)
def test_last_hidden_state_and_logits(golden, backbone_for, batch):
    backbone = backbone_for(batch)
    output = backbone(inputs_of(golden, batch))
    logits = backbone.token_embedding(output, reverse=True)
    assert_close(
        decoder_output(backbone, output), golden[f"{batch}/last_hidden_state"], where=real_tokens(golden, batch)
    )
    assert_close(logits, golden[f"{batch}/logits"], where=real_tokens(golden, batch))


def test_positions_from_mask_changes_nothing_without_left_padding(golden, golden_backbone_mask_positions):
    output = golden_backbone_mask_positions(inputs_of(golden, "right"))
    output = decoder_output(golden_backbone_mask_positions, output)
    assert_close(output, golden["right/last_hidden_state"], where=real_tokens(golden, "right"))


def test_left_padding_with_default_positions_is_clearly_different(golden, golden_backbone):
    output = decoder_output(golden_backbone, golden_backbone(inputs_of(golden, "left")))
    expected = golden["left/last_hidden_state"]
    difference = np.abs(output - expected).max(axis=-1) / np.abs(expected).max()
    real = real_tokens(golden, "left")
    unpadded_row = real.all(axis=1)
    assert difference[unpadded_row].max() < 1e-5
    assert difference[~unpadded_row][real[~unpadded_row]].min() > 0.01


def test_left_padded_rows_equal_the_same_rows_padded_right(golden, golden_backbone_mask_positions):
    left = np.asarray(golden_backbone_mask_positions(inputs_of(golden, "left")))
    right = np.asarray(golden_backbone_mask_positions(inputs_of(golden, "right")))
    assert_close(left[real_tokens(golden, "left")], right[real_tokens(golden, "right")])


def test_golden_attention_is_far_from_uniform(golden):
    """Otherwise a wrong scale or mask would hardly show in the tests above."""
    last_rows = golden["unpadded/attention_maps"][..., -1, :]
    assert (last_rows.max(axis=-1) > 3 / last_rows.shape[-1]).mean() > 0.5
