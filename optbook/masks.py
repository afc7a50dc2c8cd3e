"""Attention masks: boolean, shaped (batch, T, S), True where query t may attend to key s.

T counts queries, S counts keys. In plain self-attention T == S; with a key/value cache T is often 1.
"""

from keras import ops

from optbook._validation import checks_masks


def causal_mask(query_length, key_length=None, start_index=0):
    """Which keys are in the past: query t stands at position ``start_index + t`` and sees keys up to there.

    Parameters
    ----------
    query_length : int
        T, the number of queries.
    key_length : int, optional
        S, the number of keys; T when left out.
    start_index : int or scalar tensor
        Position of the first query. Not zero only while decoding with a cache.

    Returns
    -------
    boolean tensor of shape (1, T, S)
        Lower triangular when T == S and ``start_index`` is 0.
    """
    key_length = query_length if key_length is None else key_length
    query_positions = ops.expand_dims(start_index + ops.arange(query_length), axis=1)  # (T, 1)
    key_positions = ops.arange(key_length)  # (S,)
    return ops.expand_dims(query_positions >= key_positions, axis=0)


@checks_masks
def padding_mask(mask):
    """Which keys are real: the same answer for every query, so one row per sequence.

    Parameters
    ----------
    mask : integer or boolean tensor of shape (batch, S)
        1 for a real token, 0 for padding, as the tokenizer's preprocessor returns it.

    Returns
    -------
    boolean tensor of shape (batch, 1, S)

    Raises
    ------
    ValueError
        For any other value.
    """
    return ops.expand_dims(ops.cast(mask, "bool"), axis=1)


@checks_masks
def combine_masks(causal, padding=None):
    """Both conditions at once: a key must be in the past and real.

    Parameters
    ----------
    causal : boolean tensor of shape (1, T, S)
    padding : boolean tensor of shape (batch, 1, S), optional

    Returns
    -------
    boolean tensor of shape (batch, T, S), or ``causal`` itself when there is no padding

    Raises
    ------
    ValueError
        For a mask that holds anything but 0, 1, True and False.
    """
    return causal if padding is None else ops.logical_and(causal, padding)
