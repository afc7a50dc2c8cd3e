"""KerasHub's OPTCausalLM around our backbone: generation with its cache, training, LoRA."""

import keras
import keras_hub
import numpy as np
import pytest
from small_models import PAD, SIZES, copy_weights, make_inputs, make_pair

import optbook


def task(backbone):
    """Ids in, ids out; greedy."""
    lm = keras_hub.models.OPTCausalLM(backbone, preprocessor=None)
    lm.compile(sampler="greedy")
    return lm


@pytest.fixture(scope="module")
def tasks():
    """KerasHub's task around its backbone and around ours."""
    return [task(backbone) for backbone in make_pair()]


@pytest.mark.parametrize("lengths", [(4,), (3, 7, 5)], ids=["one prompt", "prompts of different lengths"])
def test_greedy_generation_gives_keras_hubs_ids(tasks, lengths):
    prompt = make_inputs(lengths, 20)
    theirs, ours = (lm.generate(dict(prompt), stop_token_ids=None)["token_ids"] for lm in tasks)
    np.testing.assert_array_equal(ours, theirs)
    real = prompt["padding_mask"].astype(bool)
    np.testing.assert_array_equal(ours[real], prompt["token_ids"][real])
    assert len(set(ours[~real].tolist())) > 3  # not one token over and over


def test_generation_with_the_cache_is_the_argmax_of_the_whole_pass(tasks):
    _, ours = tasks
    ids = np.asarray(ours.generate(make_inputs((4,), 20), stop_token_ids=None)["token_ids"])
    logits = ours.predict_on_batch({"token_ids": ids, "padding_mask": np.ones_like(ids)})
    np.testing.assert_array_equal(ids[0, 4:], logits.argmax(axis=-1)[0, 3:-1])


def small_task(cls):
    keras.utils.set_random_seed(0)
    return task(cls(**{**SIZES, "num_layers": 1}, dropout=0.0))


def train(lm, epochs=8):
    """A few steps on one batch of random rows; the losses."""
    inputs = make_inputs((12, 12, 9, 5), 12)
    next_ids = np.roll(inputs["token_ids"], -1, axis=1)
    weigh_next = np.roll(inputs["padding_mask"], -1, axis=1) * inputs["padding_mask"]
    weigh_next[:, -1] = 0
    lm.compile(
        optimizer=keras.optimizers.Adam(1e-2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    fitted = lm.fit(inputs, next_ids, sample_weight=weigh_next, batch_size=4, epochs=epochs, shuffle=False, verbose=0)
    return fitted.history["loss"]


def test_fit_lowers_the_loss_as_with_keras_hubs_backbone():
    theirs, ours = small_task(keras_hub.models.OPTBackbone), small_task(optbook.OPTBackbone)
    copy_weights(theirs.backbone, ours.backbone)
    losses = train(ours)
    assert losses[-1] < 0.7 * losses[0]
    np.testing.assert_allclose(losses, train(theirs), rtol=1e-3)


@pytest.fixture(scope="module")
def lora_task():
    """Trained a little with LoRA; with the weights and losses before and after."""
    lm = small_task(optbook.OPTBackbone)
    before = {weight.path: np.asarray(weight) for weight in lm.backbone.weights}
    lm.backbone.enable_lora(rank=2)
    losses = train(lm)
    return lm, before, losses


def test_lora_trains_the_queries_and_values_alone(lora_task):
    lm, before, losses = lora_task
    assert losses[-1] < losses[0]
    # A and B of two projections, and their biases
    names = sorted(variable.path.rpartition("self_attention/")[2] for variable in lm.trainable_variables)
    assert names == sorted(
        f"{layer}/{part}" for layer in ("query", "value") for part in ("bias", "lora_kernel_a", "lora_kernel_b")
    )
    biases = {variable.path for variable in lm.trainable_variables if variable.name == "bias"}
    for weight in lm.backbone.weights:
        if weight.path in before and weight.path not in biases:
            np.testing.assert_array_equal(weight, before[weight.path])


def test_lora_has_as_many_trainable_numbers_as_in_keras_hubs_backbone(lora_task):
    theirs = small_task(keras_hub.models.OPTBackbone)
    theirs.backbone.enable_lora(rank=2)
    ours, _, _ = lora_task
    shapes = [[variable.shape for variable in lm.trainable_variables] for lm in (ours, theirs)]
    assert sorted(shapes[0]) == sorted(shapes[1])


def test_lora_merged_weights_load_in_keras_hubs_class(lora_task, tmp_path):
    lm, before, _ = lora_task
    lm.backbone.save_to_preset(tmp_path / "merged")
    merged = keras_hub.models.OPTBackbone.from_preset(str(tmp_path / "merged"))
    inputs = make_inputs((9, 4), 9)
    np.testing.assert_allclose(merged(inputs), lm.backbone(inputs), atol=1e-5)
    kernel = merged.transformer_layers[0]._self_attention_layer.query_dense.kernel
    assert not np.allclose(kernel, before[lm.backbone.transformer_layers[0].self_attention.query_dense._kernel.path])


def test_prompts_of_the_embedded_preset_start_with_2_and_are_padded_on_the_right():
    lm = optbook.causal_lm(sequence_length=12)
    prompt = lm.preprocessor.generate_preprocess(["a", "It is a truth"])
    rows, mask = np.asarray(prompt["token_ids"]), np.asarray(prompt["padding_mask"]).astype(bool)
    assert rows.shape == (2, 12)
    assert (rows[:, 0] == 2).all()
    assert (rows[~mask] == PAD).all() and (rows[mask] != PAD).all()
    assert (np.diff(mask.astype(int), axis=1) <= 0).all()
