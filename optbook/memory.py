"""How many bytes a model needs to be loaded, to generate and to be looked into, and on which machines it fits.

Nothing is built, compiled or downloaded to know this: all of it follows from a preset's configuration.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import keras
import psutil

from optbook import presets
from optbook._validation import check_count

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes
# What Python, JAX, KerasHub and their first compiled programs hold before any weights: measured on Linux, rounded up.
INTERPRETER = 500_000_000
# What Keras and JAX hold for one built decoder layer, its weights aside: measured likewise.
LAYER_OBJECTS = 350_000
# JAX takes three quarters of a GPU and leaves the rest, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
GPU_SHARE = 0.75
WORKING_MAPS = 3  # a layer's softmax holds the maps of all its heads this many times, as in any forward pass
SHORT = 64  # tokens; a preset is recommended only where it can also generate at least these


class Place(NamedTuple):
    """A machine: the bytes that a model may take there, and whether they are a GPU's."""

    name: str
    limit: int
    gpu: bool = False


PLACES = (
    Place("Binder, 2 GB", 2_000_000_000 - INTERPRETER),
    Place("Colab CPU, 12.7 GB", 12_700_000_000 - INTERPRETER),
    Place("T4, 15 GB", int(15e9 * GPU_SHARE), gpu=True),
    Place("A100, 40 GB", int(40e9 * GPU_SHARE), gpu=True),
    Place("H100, 80 GB", int(80e9 * GPU_SHARE), gpu=True),
)


class Needs(NamedTuple):
    """Bytes held at the peak of three things to do with a model, its weights among them."""

    loading: int
    generating: int
    recording: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """The memory of one preset, in bytes; made by `plan`, printed as a table.

    Attributes
    ----------
    preset : str
    config : dict
        The arguments of its backbone.
    dtype : str
        Name of the Keras policy: in which type weights are kept and computed with.
    sequence_length, batch_size : int
        Tokens of a sequence, padding among them, and sequences at a time.
    """

    preset: str
    config: dict = dataclasses.field(repr=False, compare=False)
    dtype: str
    sequence_length: int
    batch_size: int

    @property
    def parameters(self):
        """Exactly how many numbers the weights are."""
        return presets.parameter_count(**self.config)

    @property
    def weights(self):
        """Weights: each parameter in the policy's variable type."""
        return self.parameters * self._weight_itemsize

    @property
    def kv_cache(self):
        """Keys and values of every layer and position, as ``OPTCausalLM.generate`` keeps them."""
        return self._cache_values * self._compute_itemsize

    @property
    def logits(self):
        """One score per vocabulary entry at every position, as calling ``OPTCausalLM`` returns; generating needs none.

        In the type of the weights: half types are not widened, and a mixed policy's table makes them float32.
        """
        return self._tokens * self.config["vocabulary_size"] * self._weight_itemsize

    @property
    def attention_maps(self):
        """The weights that `record_attention` keeps of all layers and heads: float32, (layers, batch, heads, T, T).

        A choice of layers or heads needs that much less.
        """
        return self.config["num_layers"] * self._maps_of_one_layer

    @property
    def on_cpu(self):
        """What loading, generating and recording attention take out of a machine's main memory, as `Needs`.

        A CPU takes over each array as it was read, so that loading needs, next to the weights, only the largest array
        of the last layers in the file's type (float32 is assumed). Half types save memory while loading only: XLA
        widens them to float32 for every product on a CPU, all weights at a time, and outside the loop that generates.
        """
        kernel = self.config["hidden_dim"] * self.config["intermediate_dim"] * 4
        widened = 4 if self._compute_itemsize < 4 else 0
        tables = self._token_table + self.config["max_sequence_length"] * self.config["hidden_dim"]
        objects = self.config["num_layers"] * LAYER_OBJECTS
        return Needs(
            loading=objects + max(self.weights + kernel, self._token_table * (4 + self._weight_itemsize)),
            generating=objects + self._generating(4) + widened * (self.parameters + self._token_table),
            recording=objects + self._recording(4) + widened * (self.parameters - tables),
        )

    @property
    def on_gpu(self):
        """What loading, generating and recording attention take out of a GPU's memory, as `Needs`.

        All weights have their place there from the start, and each array arrives next to them in the file's type
        (float32 is assumed) before it is cast; the largest is the token table. Main memory holds that one array.
        """
        return Needs(
            loading=self.weights + self._token_table * (4 + self._weight_itemsize),
            generating=self._generating(self._compute_itemsize),
            recording=self._recording(self._compute_itemsize),
        )

    @property
    def fits(self):
        """For the name of each place, what can be done there: a tuple of "loading", "generating", "recording".

        It is empty, and so false, where the weights cannot even be loaded.
        """
        return {place.name: self.fitting(place) for place in PLACES}

    def fitting(self, place):
        """What can be done at one place, as in `fits`."""
        needs = self.on_gpu if place.gpu else self.on_cpu
        if needs.loading > place.limit:
            return ()
        return tuple(name for name, needed in needs._asdict().items() if needed <= place.limit)

    def __str__(self):
        """The table of what fits where; the same on every machine."""
        return self.table(PLACES)

    def table(self, places):
        """What there is to hold, the peaks, and which of them fit which of the places."""

        def line(label, cells):
            return f"{label:20}" + "".join(f"{cell:>16}" for cell in cells)

        lines = [
            f"{self.preset}, {self.dtype}, {self.batch_size} × {self.sequence_length} tokens",
            line("parameters", [f"{self.parameters:,}"]),
            line("weights", [gigabytes(self.weights)]),
            line("KV cache", [gigabytes(self.kv_cache)]),
            line("logits", [gigabytes(self.logits)]),
            line("attention maps", [gigabytes(self.attention_maps)]),
            "",
            line("at the peak of", Needs._fields),
            line("on a CPU", map(gigabytes, self.on_cpu)),
            line("on a GPU", map(gigabytes, self.on_gpu)),
        ]
        for place in places:
            possible = self.fitting(place)
            lines.append(line(place.name, ["fits" if name in possible else "no" for name in Needs._fields]))
        return "\n".join(lines)

    @property
    def _weight_itemsize(self):
        return ITEMSIZE[keras.DTypePolicy(self.dtype).variable_dtype]

    @property
    def _compute_itemsize(self):
        return ITEMSIZE[keras.DTypePolicy(self.dtype).compute_dtype]

    @property
    def _tokens(self):
        return self.batch_size * self.sequence_length

    @property
    def _cache_values(self):
        """How many numbers the KV cache is: heads × head_dim is hidden_dim."""
        return self._tokens * self.config["num_layers"] * 2 * self.config["hidden_dim"]

    @property
    def _maps_of_one_layer(self):
        return self._tokens * self.sequence_length * self.config["num_heads"] * 4

    @property
    def _token_table(self):
        """How many numbers the token embedding is, the largest single array of every OPT."""
        return self.config["vocabulary_size"] * (self.config.get("embedding_dim") or self.config["hidden_dim"])

    def _generating(self, itemsize):
        """The prompt's pass fills a cache next to one layer's work; the loop holds three, and two of a layer's."""
        cache = self._cache_values * itemsize
        hidden, middle = self._tokens * self.config["hidden_dim"], self._tokens * self.config["intermediate_dim"]
        prompt = cache + max(WORKING_MAPS * self._maps_of_one_layer, (4 * hidden + middle) * itemsize)
        return self.weights + max(prompt, 3 * cache + 2 * cache // self.config["num_layers"])

    def _recording(self, itemsize):
        """Next to what is kept, one layer: its attention weights, values and residual stream, or its feed-forward."""
        hidden, middle = self._tokens * self.config["hidden_dim"], self._tokens * self.config["intermediate_dim"]
        attention = WORKING_MAPS * self._maps_of_one_layer + 2 * hidden * itemsize
        feedforward = (4 * hidden + 2 * middle) * itemsize
        return self.weights + self.attention_maps + max(attention, feedforward)


def plan(preset=presets.DEFAULT, dtype=None, sequence_length=None, batch_size=1):
    """What a preset needs in memory, before anything of it is downloaded.

    Parameters
    ----------
    preset : str, path or dict
        As for ``OPTBackbone.from_preset``; or the arguments of a backbone.
    dtype : str or keras.DTypePolicy, optional
        As for ``OPTBackbone.from_preset``: Keras's default type when left out.
    sequence_length : int, optional
        Tokens of a sequence; the preset's ``max_sequence_length`` when left out.
    batch_size : int
        Sequences at a time.

    Returns
    -------
    Plan
        Bytes of weights, KV cache, logits and attention maps; the peaks of loading, generating and recording on a CPU
        and on a GPU; and what fits where.

    Raises
    ------
    ValueError, TypeError
        For an unknown preset or type, and for a length or batch that cannot be.
    """
    name, config = ("this configuration", preset) if isinstance(preset, dict) else (str(preset), None)
    config = presets.preset_config(preset) if config is None else config
    check_count("batch_size", batch_size)
    longest = config["max_sequence_length"]
    sequence_length = longest if sequence_length is None else sequence_length
    check_count("sequence_length", sequence_length)
    if sequence_length > longest:
        raise ValueError(f"{name} has {longest} positions: sequence_length cannot be {sequence_length}.")
    return Plan(name, config, _policy_name(dtype), sequence_length, batch_size)


def all_plans(dtype=None, sequence_length=None, batch_size=1):
    """The plan of every embedded and every published preset whose weights are public, from the smallest.

    A length beyond a preset's positions is cut to them.
    """
    published = [row["name"] for row in presets.preset_table() if row["handle"]]
    plans = [plan(name, dtype, batch_size=batch_size) for name in [*presets.EMBEDDED, *published]]
    if sequence_length is None:
        return plans
    check_count("sequence_length", sequence_length)
    return [dataclasses.replace(one, sequence_length=min(sequence_length, one.sequence_length)) for one in plans]


def _policy_name(dtype):
    try:
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        supported = {policy.variable_dtype, policy.compute_dtype} <= set(ITEMSIZE) and not policy.quantization_mode
    except (ValueError, TypeError):
        supported = False
    if not supported:
        raise ValueError(f"dtype must be {', '.join(ITEMSIZE)} or mixed_bfloat16 or mixed_float16, but is {dtype!r}.")
    return policy.name


def this_machine(cgroups=Path("/sys/fs/cgroup"), own=Path("/proc/self/cgroup")):
    """Where this process runs, with the bytes it can still take: its GPU's, or else the machine's main memory.

    A container or a job of a cluster may be allowed less than the machine has; that limit counts where there is one.
    """
    device = jax.devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return Place("this machine", stats["bytes_limit"] - stats["bytes_in_use"], gpu=True)
    return Place("this machine", min([psutil.virtual_memory().available, *_left_in_cgroups(cgroups, own)]))


def _left_in_cgroups(cgroups, own):
    """What Linux's control groups leave this process: the bytes below the limit of its group and of those around it.

    Memory of files that were read counts as free, since the system gives it up when asked to.
    """
    if not own.exists():  # macOS
        return
    for line in own.read_text(encoding="utf-8").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":  # version 2
            root, names = cgroups, ("memory.max", "memory.current", "inactive_file")
        elif controllers == "memory":  # version 1
            root = cgroups / "memory"
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        # Inside a container the group may be named as seen from outside; then only the root is there.
        for folder in {root, *(root / part for part in [Path(group.lstrip("/")), *Path(group.lstrip("/")).parents])}:
            limit, used, statistics = (folder / name for name in (*names[:2], "memory.stat"))
            if not limit.is_file() or limit.read_text().strip() == "max":
                continue
            cached = dict(entry.split() for entry in statistics.read_text().splitlines()).get(names[2], 0)
            yield max(0, int(limit.read_text()) - int(used.read_text()) + int(cached))


def require_fit(preset, config):
    """Raises MemoryError, in one line that names what would fit, if a preset cannot be loaded on this machine.

    ``config`` holds the arguments of its backbone, ``dtype`` among them. Nothing is built or downloaded.
    """
    asked = dataclasses.replace(plan(config, config.get("dtype")), preset=str(preset))
    place = this_machine()
    if not asked.fitting(place):
        raise MemoryError(refusal(asked, place, "loading"))


def refusal(asked, place, activity):
    """One line: what a plan needs, what the place has, and the nearest plan that fits there."""
    needs = asked.on_gpu if place.gpu else asked.on_cpu
    found = nearest_that_fits(asked, place, activity)
    if found is None:
        advice = "no preset is small enough: free some memory first"
    else:
        names = ["dtype"] if activity == "loading" else ["dtype", "sequence_length", "batch_size"]
        changed = {name: getattr(found, name) for name in names if getattr(found, name) != getattr(asked, name)}
        subject = "it" if found.preset == asked.preset else found.preset
        with_what = " with " + ", ".join(f"{name}={value!r}" for name, value in changed.items()) if changed else ""
        advice = f"{subject} would fit{with_what}"
    return (
        f"{activity} {asked.preset} in {asked.dtype} needs {gigabytes(getattr(needs, activity))}, "
        f"but {place.name} has {gigabytes(place.limit)} free; {advice}."
    )


def nearest_that_fits(asked, place, activity="loading"):
    """The plan nearest to the asked one that fits a place, or None: shorter first, then a half type, then smaller.

    What is only to be loaded shall also be able to generate a short text, or it would be of no use.
    """
    if activity == "loading":
        asked = dataclasses.replace(asked, sequence_length=min(asked.sequence_length, SHORT), batch_size=1)
        activity = "generating"
    for candidate in _from_nearest(asked):
        if activity in candidate.fitting(place):
            return candidate
    return None


def _from_nearest(asked):
    for batch_size in _halves(asked.batch_size, 1):
        yield dataclasses.replace(asked, batch_size=batch_size)
    for sequence_length in _halves(asked.sequence_length, SHORT):
        yield dataclasses.replace(asked, batch_size=1, sequence_length=sequence_length)
    every = all_plans(asked.dtype, asked.sequence_length, asked.batch_size)
    smaller = sorted((one for one in every if one.parameters < asked.parameters), key=lambda one: -one.parameters)
    as_asked = [asked, *smaller]
    shortest = [
        dataclasses.replace(one, sequence_length=min(one.sequence_length, SHORT), batch_size=1) for one in as_asked
    ]
    for candidate in as_asked + shortest:
        for dtype in (asked.dtype, "bfloat16"):
            yield dataclasses.replace(candidate, dtype=dtype)


def _halves(number, least):
    while number // 2 >= least:
        number //= 2
        yield number


def gigabytes(count):
    """Bytes for people: two digits after the point below 10 GB, and megabytes below a tenth."""
    if count < 100_000_000:
        return f"{count / 1e6:.2f} MB"
    return f"{count / 1e9:.2f} GB" if count < 10_000_000_000 else f"{count / 1e9:.1f} GB"
