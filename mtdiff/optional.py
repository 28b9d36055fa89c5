"""What not every installation has: libraries that come with an extra of the package."""

import contextlib
from collections.abc import Iterator


class NotInstalled(ImportError):
    """A library is missing; in a notebook it is said in one line, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows."""
        return [str(self)]


@contextlib.contextmanager
def needed(what: str, extra: str = "notebooks") -> Iterator[None]:
    """Around an import: where a library is not installed, an error that says what needs it, and how to get it.

    Raises:
        NotInstalled: the library is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library, *_ = (error.name or "").split(".")
        if library == "mtdiff":
            raise
        raise NotInstalled(f"{what} needs {library}: pip install 'mtdiff[{extra}]'", name=library) from None
