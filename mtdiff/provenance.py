"""What a written file says of where it came from."""

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch


def provenance(device: str = "cpu") -> dict[str, str | int]:
    """Where and how a result came about: command (of absolute paths the last part), commit, versions and hardware."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    module = getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", "")  # of python -m
    root, script = Path(__file__).parents[1], Path(sys.argv[0]).absolute()
    if script.stem in ("mtdiff", "__main__"):
        command = " ".join(["mtdiff", *words])
    elif module.startswith("mtdiff."):
        command = " ".join(["python", "-m", module, *words])
    else:  # a benchmark, or anything else
        own = root / "tests" in script.parents
        command = " ".join(["python", script.relative_to(root).as_posix(), *words]) if own else "python"
    return {
        "command": command,
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": torch.cuda.get_device_name(device) if device.startswith("cuda") else f"CPU, {_cpu()}",
        "threads": torch.get_num_threads(),
    }


def _commit() -> str:
    """The commit of the source tree that runs, "-dirty" if it was changed since; not known for an installed wheel."""
    root, git = Path(__file__).parents[1], shutil.which("git")
    if git is None or not (root / ".git").exists():
        return "unknown"
    command = [git, "describe", "--always", "--dirty", "--abbrev=10"]
    return subprocess.run(command, capture_output=True, text=True, cwd=root).stdout.strip() or "unknown"


def _cpu() -> str:
    """The processor's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    found = re.search("^model name.*?: *(.*)", info.read_text(), re.MULTILINE) if info.is_file() else None
    return found[1].strip() if found else platform.processor() or platform.machine()
