"""What can be built again from a card: classes that note the arguments they were made with."""

import inspect
import reprlib
from collections.abc import Mapping, Sequence
from typing import ClassVar, get_args

from mtdiff.reading import check_types, hints


class Recorded:
    """An object that notes what it was made of: `config` is {"kind": name of its class, **arguments}, JSON values.

    A direct subclass begins a family, whose classes `kinds` holds by name: none has to register, or to pass anything on.
    What is `apart` is left out of `config`, and kept by other means.
    """

    kinds: ClassVar[dict[str, type]]
    apart: ClassVar[tuple[str, ...]] = ()
    config: dict

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if Recorded in cls.__bases__:
            cls.kinds = {}
        cls.kinds[cls.__name__] = cls

    def __new__(cls, *args, **kwargs):
        """Note the arguments, by name and with their defaults, before `__init__` sees them."""
        made, signature = super().__new__(cls), inspect.signature(cls.__init__)
        try:
            bound = signature.bind(made, *args, **kwargs)
        except TypeError:  # __init__ says what is wrong; a copy is made without arguments
            return made
        bound.apply_defaults()
        made.config = {"kind": cls.__name__}
        for name, value in list(bound.arguments.items())[1:]:
            several = signature.parameters[name].kind
            if several is inspect.Parameter.VAR_POSITIONAL and value:
                raise TypeError(f"{cls.__name__} takes *{name}: only arguments that have a name can be noted in a card")
            if several is not inspect.Parameter.VAR_POSITIONAL and name not in cls.apart:
                made.config |= plain(value if several is inspect.Parameter.VAR_KEYWORD else {name: value})
        return made

    @classmethod
    def from_config(cls, config: Mapping) -> "Recorded":
        """Build what a config describes, of this class or one below it; `channels`, and what is annotated so, is a slice.

        Raises:
            ValueError: no such config, an unknown kind (the class that defines it has not been imported), or an argument of
                another type than the class says.
        """
        what = cls.__name__.lower()
        if not isinstance(config, Mapping) or not isinstance(kind := config.get("kind"), str):
            raise ValueError(f'a {what} is described by {{"kind": ..., ...}}, got {reprlib.repr(config)}')
        known = {name: each for name, each in cls.kinds.items() if issubclass(each, cls)}
        if kind not in known:
            raise ValueError(f"unknown {what} kind {kind!r}; known: {sorted(known)}. Import the class first")
        given = {name: value for name, value in config.items() if name != "kind"}
        types = hints(known[kind])
        check_types(given, types, f"the {what} {kind}")
        for name, value in given.items():
            if value is not None and (name == "channels" or slice in (types.get(name), *get_args(types.get(name)))):
                given[name] = slice(*value)
        return known[kind](**given)


def plain(value: object) -> object:
    """A value as JSON has it: slices, sequences and tensors as lists, what is recorded by its config."""
    if isinstance(value, Recorded):
        return value.config
    if isinstance(value, slice):
        return [value.start, value.stop]
    if hasattr(value, "items"):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(each) for each in value]
    return value.tolist() if hasattr(value, "tolist") else value
