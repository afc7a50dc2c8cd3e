"""What every check uses: a failure that is one sentence, the reader's function asked, and its answer compared."""

import copy
import traceback

import jax
import jax.numpy as jnp
import numpy as np


class NotYet(AssertionError):
    """A check that failed; its message is written for the reader."""

    def _render_traceback_(self):
        """What Jupyter shows: the sentence alone, since a traceback would show the check's source, answer included."""
        return [f"NotYet: {self}"]


def require(condition, message):
    """Raises `NotYet` with the message unless the condition holds."""
    if not condition:
        raise NotYet(message)


def ask(function, *arguments, hints=None):
    """What the reader's function answers to copies of the arguments.

    ``hints`` maps words of an exception's text to what helps. Raises `NotYet` where the function stops with an
    exception, returns None or changes what it was given.
    """
    given = [copy.deepcopy(one) if isinstance(one, np.ndarray | list | dict) else one for one in arguments]
    try:
        with np.errstate(all="ignore"):  # the NaN of a division by 0 is named by the check
            answer = function(*given)
    except NotImplementedError:
        answer = None
    except Exception as error:
        file = getattr(getattr(function, "__code__", None), "co_filename", None)
        lines = [frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        where = f" in the line `{lines[-1]}`" if lines and lines[-1] else ""
        text = str(error).strip().partition("\n")[0]
        hint = next((hint for words, hint in (hints or {}).items() if words in str(error)), "")
        raise NotYet(f"your function stopped{where} with {type(error).__name__}: {text}{hint}") from error
    for before, after in zip(arguments, given):
        require(_is_same(before, after), "your function changed what it was given: work on a copy.")
    require(answer is not None, "nothing written yet: your function returned None, so its last line needs a return.")
    return answer


def _is_same(before, after):
    (leaves, structure), (others, other_structure) = jax.tree.flatten(before), jax.tree.flatten(after)
    equal = (one is other or np.array_equal(one, other) for one, other in zip(leaves, others))
    return structure == other_structure and all(equal)


def numbers(answer):
    """The answer as an array of numbers or booleans; `NotYet` where it is none."""
    try:
        array = np.asarray(answer)
    except (TypeError, ValueError):  # rows of different lengths, or no array at all
        array = np.array(None)
    require(array.dtype.kind in "biufV", f"an array of numbers is wanted, but the answer is {_shown(answer)}.")
    return array


def _shown(answer):
    text = " ".join(repr(answer).split())
    return f"of type {type(answer).__name__}: {text if len(text) <= 60 else text[:60] + '…'}"


def require_shape(array, shape, name, shapes=None):
    """Requires a shape; ``shapes`` maps wrong ones to a hint, and None to the hint for any other."""
    hint = (shapes or {}).get(array.shape, (shapes or {}).get(None))
    require(array.shape == shape, f"{name} has shape {array.shape}, not {shape}" + (f": {hint}." if hint else "."))


def rounding(array):
    """How far a right answer of this dtype may be from the exact one, as a share of its scale: 8 roundings."""
    return 8 * float(jnp.finfo(array.dtype).eps) if jnp.issubdtype(array.dtype, jnp.floating) else 0.0


def _gap(array, target):
    """Largest difference as a share of the target's scale; NaN equals NaN, and another shape is infinitely far."""
    if isinstance(target, tuple):
        return min(_gap(array, one) for one in target)
    target = np.asarray(target() if callable(target) else target).astype("float64")
    if array.shape != target.shape:
        return np.inf
    same = (array == target) | (np.isnan(array) & np.isnan(target))
    scale = np.abs(target[np.isfinite(target)]).max(initial=0.0) or 1.0
    with np.errstate(invalid="ignore"):
        largest = np.where(same, 0.0, np.abs(array - target)).max(initial=0.0) / scale
    return float(np.nan_to_num(largest, nan=np.inf))


def compare(answer, right, mistakes=None, *, name="your result", shapes=None, tolerance=1e-5, otherwise=None):
    """Passes an answer that is right and names the mistake behind one that is not.

    Parameters
    ----------
    answer : array, list or number
        The reader's, of any dtype: what float16 or bfloat16 may round is allowed, unless a mistake is nearer.
    right : array of the same shape
    mistakes : dict, optional
        From the sentence that names a mistake to what it gives, to a function without arguments that gives it, or to a
        tuple of several such outcomes.
    name : str
        What is compared, for messages.
    shapes : dict, optional
        From a wrong shape to a hint; the hint at None is for any other wrong shape.
    tolerance : float
        As a share of the largest absolute value; where ``right`` holds integers or booleans, nothing is allowed.
    otherwise : str or callable, optional
        What to say when no mistake is recognized; a callable gets the answer.

    Raises
    ------
    NotYet
    """
    array, right = numbers(answer), np.asarray(right)
    require_shape(array, right.shape, name, shapes)
    booleans = array.dtype == bool and right.dtype != bool
    exact = right.dtype.kind in "biu"
    tolerance, wide = (0.0, 0.0) if exact else (tolerance, max(tolerance, rounding(array)))
    array = array.astype("float64")
    gap = _gap(array, right)
    if gap <= tolerance and not booleans:
        return
    gaps = {message: _gap(array, wrong) for message, wrong in (mistakes or {}).items()}
    nearest = min(gaps, key=gaps.get, default=None)
    if not booleans and gap <= min(wide, gaps.get(nearest, np.inf)):
        return
    require(nearest is None or gaps[nearest] > wide, f"{nearest}.")
    require(not booleans, f"{name} holds True and False where numbers are wanted.")
    if otherwise:
        raise NotYet(otherwise if isinstance(otherwise, str) else otherwise(array))
    require(np.isfinite(array).all(), f"{name} holds NaN or infinite values.")
    where = np.unravel_index(np.abs(array - right).argmax(), right.shape)
    at = f"wrong at {tuple(map(int, where))}" if where else "wrong"
    raise NotYet(f"{name}: {at}, where {float(right[where]):.5g} should be and {float(array[where]):.5g} is.")


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
        answer = verdict(function, suspects, suspect)
        require(answer == truth, f"you called {truth!r} {answer!r}{advice(truth, answer)}.")


def verdict(function, verdicts, *arguments):
    """What the reader's function says of the arguments: one of the verdicts, or `NotYet`."""
    answer = ask(function, *arguments)
    known = isinstance(answer, str) and answer in verdicts
    require(known, f"the answer was {answer!r}; answer with one of {', '.join(map(repr, verdicts))}.")
    return answer


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
