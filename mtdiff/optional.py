"""What not every installation has: libraries that come with an extra of the package."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needed(what: str, extra: str = "notebooks") -> Iterator[None]:
    """Around an import: where a library is not installed, an ImportError that says what needs it, and how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        library, *_ = (error.name or "").split(".")
        if library == "mtdiff":
            raise
        raise ImportError(f"{what} needs {library}: pip install 'mtdiff[{extra}]'", name=library) from None
