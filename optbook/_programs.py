"""Compiled passes that follow the model: what runs is the model as it is at the moment of the call.

A program is compiled once for each structure: all that Python reads while JAX traces a pass, down to the epsilon of a
normalization. It is looked up anew whenever `program` is called. Weights are no part of a structure, they are
arguments; so models of one structure share their programs, and no program keeps a model alive.
"""

import functools
import hashlib
import sys
import types
import weakref

import jax
import keras
import keras_hub
import numpy as np

from optbook import backbone, layers, masks

# Code of these packages is as it was written. Any other, as a notebook's, may read what changes between two calls: a
# pass through it is traced anew every time.
FIXED = {"builtins", "collections", "contextlib", "functools", "jax", "jaxlib", "keras", "keras_hub", "numpy"}
FIXED |= {"operator", "optbook", "optree"}

# What objects carry for building, training, naming and saving, and no forward pass reads. What a new version of Keras
# adds is read until it stands here.
UNREAD = {"_allow_non_tensor_positional_args", "_auto_config", "_build_shapes_dict", "_called", "_inbound_nodes"}
UNREAD |= {"_input_spec", "_lock", "_loss_ids", "_losses", "_losses_override", "_metrics", "_non_trainable_variables"}
UNREAD |= {"_outbound_nodes", "_parent_path", "_path", "_seed_generators", "_tracker", "_trainable"}
UNREAD |= {"_trainable_variables", "activity_regularizer", "build", "built", "name", "quantize", "supports_jit"}
UNREAD |= {"_call_context_args", "_call_has_context_arg", "_call_has_mask_arg", "_call_has_training_arg"}  # of `call`
UNREAD |= {"_call_signature", "call_signature_parameters"}
UNREAD |= {"_functional_layer_ids", "_nodes", "_nodes_by_depth", "_operations_by_depth"}  # of a functional model
UNREAD |= {"_compile_config", "_compile_loss", "_compile_metrics", "_compiled_trainable_state"}  # of compile
UNREAD |= {"_compute_loss_has_training_arg", "_jit_compile", "_loss_tracker", "_run_eagerly", "compiled", "loss"}
UNREAD |= {"steps_per_execution", "predict_function", "test_function", "train_function"}
UNREAD |= {"_eval_epoch_iterator", "_initial_epoch", "_jax_state", "_jax_state_synced", "history", "stop_training"}
UNREAD |= {"generate_function", "sampler"}  # `generate` has its own
UNREAD |= {"_initial_seed", "seed"}  # what comes of it is a variable
UNREAD_TYPES = (
    keras.Initializer,
    keras.InputSpec,
    keras.KerasTensor,
    keras.Loss,
    keras.Metric,
    keras.Optimizer,
    keras.Regularizer,
    keras.constraints.Constraint,
    keras.layers.InputLayer,
    keras_hub.models.Preprocessor,
)
READ_MODULES = keras.ops, backbone, layers, masks  # whose functions and constants a forward pass looks up
PLAIN = type(None), bool, int, str, bytes, type(Ellipsis)


def program(function, *parts, state_mapping=(), **static):
    """A function compiled with a model as it is now.

    Parameters
    ----------
    function : callable
        A module's function, called as ``function(*parts, *arguments, **static)``.
    *parts : object
        A backbone or a task model first, then what else Python reads, as a sampler. They are not kept alive.
    state_mapping : list of (keras.Variable, array)
        Values in place of those that variables of the parts hold.
    **static : hashable
        What is known when the function is compiled.

    Returns
    -------
    callable
        Takes the arguments: arrays, or dicts and lists of them.

    Raises
    ------
    ValueError
        When a model names other layers than those its call runs, or its call or a variable's class was replaced.
    """
    _check_layers(parts[0])
    structure = Structure(parts)
    mapped = {id(variable): value for variable, value in state_mapping}
    values = [
        mapped[id(each)] if id(each) in mapped else each.value  # noqa: SIM401 - a replaced one may have none
        for each in structure.variables
    ]
    traced = _Traced(function, tuple(map(weakref.ref, parts)), tuple(static.items()), tuple(structure.entries))
    if structure.is_fixed:
        return functools.partial(_compiled, traced, values)
    return functools.partial(jax.jit(functools.partial(_run, traced)), values)


class _Traced:
    """What a program is traced from; equal to any other that gives the same program."""

    def __init__(self, function, parts, static, entries):
        self.function, self.parts, self.static = function, parts, static
        self.key = function, static, entries
        self.hash = hash(self.key)

    def __eq__(self, other):
        return self.key == other.key

    def __hash__(self):
        return self.hash


def _run(traced, values, *arguments):
    parts = [part() for part in traced.parts]
    with keras.StatelessScope(state_mapping=list(zip(Structure(parts).variables, values))):
        return traced.function(*parts, *arguments, **dict(traced.static))


_compiled = jax.jit(_run, static_argnums=0)


def _check_layers(model):
    """A model's call runs the graph that it was built with; a pass that goes through its layers must be the same."""
    backbone = getattr(model, "backbone", model)
    named = [backbone.embeddings, *backbone.transformer_layers, backbone.layer_norm]
    graphs = {"backbone": (backbone, named)}
    if backbone is not model:
        graphs["model"] = model, [backbone, backbone.token_embedding]
    for name, (owner, expected) in graphs.items():
        own = getattr(owner.call, "__func__", None) is not keras_hub.models.Backbone.call
        if own or vars(owner).keys() & {"call_with_cache", "embed"}:
            raise ValueError(f"the {name}'s call was replaced, and passes run its layers: wrap a layer's call instead.")
        run = [layer for layer in owner.layers if not isinstance(layer, keras.layers.InputLayer)]
        if len(run) != len(expected) or any(one is not other for one, other in zip(run, expected)):
            raise ValueError(f"the {name}'s layers were replaced, but its call runs the old ones: build a new {name}.")
    if backbone.token_embedding is not backbone.embeddings.token_embedding:
        raise ValueError("the token table at the input is not the one at the output: build a new backbone.")
    counts_over_mask = any(not isinstance(operation, keras.Layer) for operation in backbone.operations)
    if counts_over_mask != getattr(backbone, "positions_from_mask", False):
        raise ValueError("positions_from_mask is chosen when a backbone is built: build a new one with it.")


class Structure:
    """All that a trace through some objects depends on, found by a walk over their attributes.

    Attributes
    ----------
    entries : list
        Equal to those of other objects of the same structure. Arrays are in it by their content.
    variables : list of keras.Variable
        In the order in which they were met.
    is_fixed : bool
        False where something may change and not show it in ``entries``.
    """

    def __init__(self, parts):
        self.entries, self.variables, self.is_fixed = [], [], True
        self._met, self._kept = {}, []  # kept, so that no id is given anew during the walk
        self._classes = {}
        self._add_all("", "parts", parts)
        self.is_fixed &= all(map(_is_module_as_written, READ_MODULES))
        configuration = keras.config.floatx(), keras.config.epsilon(), keras.config.is_flash_attention_enabled()
        self.entries.append((*configuration, keras.distribution.distribution()))

    def _add(self, name, value):
        kind = type(value)
        if kind in PLAIN:
            self.entries.append((name, kind, value))
        elif kind is float or kind is complex:
            self.entries.append((name, kind, repr(value)))  # nan equals nan then, and -0.0 not 0.0
        elif id(value) in self._met:
            self.entries.append((name, "met", self._met[id(value)]))
        elif not isinstance(value, UNREAD_TYPES):
            self._kept.append(value)
            if not isinstance(value, tuple | keras.DTypePolicy):  # equal ones are as good as one
                self._met[id(value)] = len(self._met)
            self._add_new(name, value, kind)

    def _add_new(self, name, value, kind):
        if isinstance(value, keras.Variable):
            if not self._is_fixed_class(kind):
                raise ValueError(
                    f"variable {value.path} is of a class of its own, {kind.__name__}: use a keras.Variable."
                )
            self.entries.append((name, keras.Variable, value._autocast))
            self.variables.append(value)
        elif isinstance(value, np.ndarray | np.generic | jax.Array) and _is_plain(value.dtype):
            content = np.ascontiguousarray(value)
            digest = hashlib.sha256(content.view("uint8") if content.size else b"").digest()
            self.entries.append((name, kind, value.shape, str(value.dtype), digest))
        elif isinstance(value, types.MethodType):
            self._add_all(name, kind, [value.__func__, value.__self__])
        elif isinstance(value, types.FunctionType):
            self._add_one_of_a_kind(name, value.__code__, _is_fixed_function(value))
            cells = [getattr(cell, "cell_contents", None) for cell in value.__closure__ or ()]
            self._add_all("", kind, [*cells, value.__defaults__, value.__kwdefaults__])
        elif isinstance(value, functools.partial):
            self._add_all(name, kind, [value.func, value.args, value.keywords])
        elif isinstance(value, type):
            self._add_one_of_a_kind(name, value, self._is_fixed_class(value))
        elif isinstance(value, dict):
            self._add_one_of_a_kind(name, kind, self._is_fixed_class(kind))
            self._add_all("", len(value), [part for item in value.items() for part in item])
        elif isinstance(value, list | tuple):
            self._add_one_of_a_kind(name, kind, self._is_fixed_class(kind))
            self._add_all("", len(value), value)
        elif hasattr(value, "__dict__") and self._is_fixed_class(kind):
            self._add_one_of_a_kind(name, kind, True)
            self._add_attributes(value)
        else:
            self._add_one_of_a_kind(name, value, _is_held(value))
            if isinstance(value, keras.Layer):  # of an unknown class; its weights are arguments all the same
                self._add_attributes(value)

    def _add_all(self, name, kind, values):
        self.entries.append((name, kind))
        for value in values:
            self._add("", value)

    def _add_attributes(self, value):
        attributes = [item for item in vars(value).items() if item[0] not in UNREAD]
        self.entries.append(("attributes", len(attributes)))
        if isinstance(value, keras.Layer):
            # A map of policies has one for the layer's path, and that is not read.
            self.entries.append((value.compute_dtype, value.variable_dtype, value.quantization_mode))
        for name, of_it in attributes:
            self._add(name, of_it)

    def _add_one_of_a_kind(self, name, value, is_fixed):
        """What nothing but its identity tells from others."""
        self.is_fixed &= is_fixed
        self.entries.append((name, value if is_fixed else object()))

    def _is_fixed_class(self, kind):
        if kind not in self._classes:
            self._classes[kind] = all(map(_is_as_written, kind.__mro__))
        return self._classes[kind]


def _is_plain(dtype):
    """Whether the bytes of an array are all of it; those of a random key, or of objects, are not."""
    return isinstance(dtype, np.dtype) and not dtype.hasobject


def _is_fixed(module):
    return isinstance(module, str) and module.partition(".")[0] in FIXED


def _is_fixed_function(value):
    return _is_fixed(value.__globals__.get("__name__"))  # __module__ is what functools.wraps copies


def _is_held(value):
    """Whether a module of a fixed package holds this object under its own name."""
    if isinstance(value, types.ModuleType):
        return _is_fixed(value.__name__)
    module = getattr(value, "__module__", None)
    if not _is_fixed(module):
        return False
    held = sys.modules.get(module)
    for name in getattr(value, "__qualname__", "").split("."):
        held = getattr(held, name, None)
    return held is value


_written = {}


def _is_as_written(kind):
    """Whether a class is one of a fixed package, keeps its state in view, and nothing of it has been replaced."""
    if not _is_fixed(kind.__module__):
        return False
    members = [member for name, member in vars(kind).items() if name != "__slotnames__"]  # copy.copy's cache
    if kind not in _written:
        has_slots = any(isinstance(member, types.MemberDescriptorType) for member in members)
        is_builtin = kind.__module__ == "builtins" and kind not in (object, list, tuple, dict)
        if has_slots or is_builtin:
            return False
    return _are_as_written(kind, members)


def _is_module_as_written(module):
    """Whether no function, class or constant of a module has been replaced."""
    kinds = types.FunctionType, type, int, float
    return _are_as_written(module, [member for member in vars(module).values() if isinstance(member, kinds)])


def _are_as_written(holder, members):
    """Whether members are those that were met first, with the same code, and none is of another package."""
    functions = [getattr(member, "__func__", getattr(member, "fget", member)) for member in members]
    functions = [each for each in functions if isinstance(each, types.FunctionType)]
    if holder not in _written and not all(map(_is_fixed_function, functions)):
        return False
    inner = [(each.__code__, each.__defaults__, each.__kwdefaults__) for each in functions]  # as a reload sets them
    return _written.setdefault(holder, (members, inner)) == (members, inner)
