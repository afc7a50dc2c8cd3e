"""What every check uses: a failure that is one sentence, and the comparison of two arrays."""

import numpy as np


class NotYet(AssertionError):
    """A check that failed; its message is written for the reader."""


def require(condition, message):
    """Raises `NotYet` with the message unless the condition holds."""
    if not condition:
        raise NotYet(message)


def require_diagnoses(function, suspects, advice):
    """Requires that ``function`` gives each suspect its verdict.

    Parameters
    ----------
    function : callable
        From a suspect to a verdict.
    suspects : dict
        From each verdict to what deserves it.
    advice : callable
        From (the right verdict, the given one) to what helps to tell them apart; it ends the sentence.
    """
    for truth, suspect in suspects.items():
        answer = function(suspect)
        require(answer in suspects, f"the answer was {answer!r}; answer with one of {', '.join(map(repr, suspects))}.")
        require(answer == truth, f"you called {truth!r} {answer!r}{advice(truth, answer)}.")


def parity(ours, theirs, tolerance=1e-5):
    """Asserts that two arrays are equal up to rounding and says so in a line.

    Parameters
    ----------
    ours, theirs : arrays of one shape
    tolerance : float
        Largest allowed difference, as a share of the largest absolute value of ``theirs``.

    Returns
    -------
    str
        A line that holds on any machine: it names the tolerance, not the difference.

    Raises
    ------
    NotYet
        With the largest difference and where it is.
    """
    ours, theirs = (np.asarray(array).astype("float32") for array in (ours, theirs))
    require(ours.shape == theirs.shape, f"the shapes differ: {ours.shape} against {theirs.shape}.")
    require(np.isfinite(ours).all(), "there are NaN or infinite values in the first array.")
    scale = float(np.abs(theirs).max()) or 1.0
    difference = np.abs(ours - theirs)
    where = tuple(int(i) for i in np.unravel_index(difference.argmax(), difference.shape))
    largest = float(difference.max()) / scale
    require(
        largest <= tolerance,
        f"the arrays differ by up to {largest:.1e} of their scale (allowed: {tolerance:.0e}), most at index {where}.",
    )
    return f"equal: all {difference.size} numbers agree to {tolerance:.0e} of their scale"
