"""What can be built again from a card: classes that note the arguments they were made with."""

import inspect
import reprlib
from collections.abc import Mapping, Sequence
from typing import ClassVar, get_args, get_origin

from torch import Tensor

from mtdiff.reading import check_types


class UnknownKind(ValueError):
    """A card names a class that is not imported."""


class Recorded:
    """An object that notes what it was made of: `config` is {"kind": name of its class, **arguments}, JSON values.

    A direct subclass begins a family, whose classes `kinds` holds by name: none has to register, or to pass anything on.
    `family` is what people call one of them. Arguments in `apart` are left out of `config`, and kept by other means.
    """

    kinds: ClassVar[dict[str, type]]
    family: ClassVar[str]
    apart: ClassVar[tuple[str, ...]] = ()
    config: dict

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if Recorded in cls.__bases__:
            cls.kinds, cls.family = {}, vars(cls).get("family", cls.__name__.lower())
        home = cls.kinds.get(cls.__name__, cls).__module__
        if home.startswith("mtdiff.") and home != cls.__module__:
            raise TypeError(f"{home} has a {cls.family} {cls.__name__} already: give yours another name")
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
    def known(cls) -> dict[str, type]:
        """This class and all below it, by name."""
        return {name: kind for name, kind in cls.kinds.items() if issubclass(kind, cls)}

    @classmethod
    def kind_of(cls, config: Mapping) -> type:
        """The class that a config names, this one or one below it; UnknownKind where no imported one has that name."""
        if not isinstance(config, Mapping) or not isinstance(kind := config.get("kind"), str):
            raise ValueError(f'a {cls.family} is described by {{"kind": ..., ...}}, got {reprlib.repr(config)}')
        if kind not in (known := cls.known()):
            raise UnknownKind(f"unknown {cls.family} kind {kind!r}; known: {sorted(known)}. Import the class first")
        return known[kind]

    @classmethod
    def from_config(cls, config: Mapping, **apart) -> "Recorded":
        """Build what a config describes, with what was kept apart; ValueError where kind or types of arguments are wrong."""
        kind, given = cls.kind_of(config), {name: value for name, value in config.items() if name != "kind"}
        check_types(given, annotated(kind), f"the {cls.family} {kind.__name__}")
        types = annotated(*reversed(kind.__mro__))  # a class of one's own may leave them to its parents
        return kind(**{name: revived(value, types.get(name)) for name, value in given.items()}, **apart)

    # ---- what is saved of a network of its own, and how it is built again ----

    def architecture(self) -> dict:
        """What a card says of it."""
        return self.config

    def tables(self) -> dict[str, Tensor]:
        """What is saved among the weights as it is, whatever their precision."""
        return {}

    @classmethod
    def restored(cls, architecture: Mapping, tensors: dict[str, Tensor]) -> "Recorded":
        """Build it from its architecture and its tables, which are taken out of the tensors."""
        return cls.from_config(architecture)


def annotated(*classes: type) -> dict[str, object]:
    """{argument: type} of constructors, the last that says one."""
    hints = [item for kind in classes for item in inspect.get_annotations(kind.__init__).items()]
    return {name: hint for name, hint in hints if not isinstance(hint, str)}


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


def revived(value: object, hint: object) -> object:
    """What JSON has for a slice, for something recorded or for a table of such, as the annotated type says it was."""
    origin, inner = get_origin(hint), get_args(hint)
    if value is not None and slice in (hint, *inner):
        return slice(*value)
    if origin is Mapping:
        return {name: revived(each, inner[1]) for name, each in value.items()}
    return hint.from_config(value) if origin is None and hasattr(hint, "from_config") else value
