"""Sharing: what is saved can be pushed to the Hugging Face hub, and read from there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, snapshot_download

from steerlab._support.checks import check_type, named_options
from steerlab._support.files import storing, write_text
from steerlab.errors import LoadError, SteerlabError, StorageError

_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
_OURS = ["manifest.json", "README.md", "*.safetensors", "adapter_config.json", "history.csv"]
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
Shared = TypeVar("Shared", bound="Shareable")


class Shareable(ModelHubMixin, library_name="steerlab", tags=["steering-vectors"]):
    """`save_pretrained`, `from_pretrained` and `push_to_hub`.

    A subclass writes its files in `_save_pretrained(folder)` and reads them in `_from_folder(folder, **options)`. The
    README.md beside them is the model card.
    """

    # not None, or the mixin would keep the arguments for a config.json, which no checksum guards
    _hub_mixin_config: Any = {}  # noqa: RUF012

    def __init__(self) -> None:
        """Nothing to set; nearer than the mixin's `__new__`, whose arguments would be taken for those of a method."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = named_options(cls.__init__)  # type: ignore[method-assign]

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write a folder that `from_pretrained` reads; what it held before is replaced at once or kept.

        Example:
            >>> vector.save_pretrained("runs/polite")
            >>> again = SteeringVector.from_pretrained("runs/polite", model)

        Args:
            save_directory: the folder.
            options: `push_to_hub=True`, `repo_id`, and other arguments of `push_to_hub`.

        Returns:
            The address of the commit, where it was pushed.

        Raises:
            ActivationError: not fitted. DataError: a value that can't be stored.
            StorageError: the disk is full, or the folder can't be written to.
        """
        with storing(folder := Path(save_directory)):
            folder.mkdir(parents=True, exist_ok=True)
            self._save_pretrained(folder)
            write_text(folder / "README.md", str(self.generate_model_card()))
        for name in ("config", "model_card_kwargs"):  # the mixin's own; the manifest and the card are ours
            options.pop(name, None)
        if not options.pop("push_to_hub", False):
            if options:
                raise SteerlabError(f"{', '.join(options)}: for push_to_hub=True, which was not given")
            return None
        return self.push_to_hub(options.pop("repo_id", None) or folder.name, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload it to the hub, as `save_pretrained` writes it; returns the address of the commit.

        Example:
            >>> vector.push_to_hub("user/polite", private=True)

        Args:
            repo_id: "user/name" or "name".
            options: `private`, `token`, `commit_message`, `branch`, ... of Hugging Face's `push_to_hub`.

        Raises:
            StorageError: the hub can't be reached, or refuses.
        """
        try:
            return str(super().push_to_hub(repo_id, **options))
        except SteerlabError:
            raise
        except Exception as error:  # whichever client of HTTP the hub's library uses raises its own
            raise StorageError(
                f"{repo_id!r} could not be pushed to the hub ({first_line(error)}): nothing was changed there. Check "
                "the name and the network, and log in with `hf auth login` or token="
            ) from error

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the model, which decides whether a vector fits, comes second
        cls: type[Shared], place: str | Path, model: Any = None, *, force: bool = False, **hub: Any
    ) -> Shared:
        """Read what `save_pretrained` or `push_to_hub` wrote.

        Example:
            >>> MeanDifference.from_pretrained("user/polite", model, revision="main")

        Args:
            place: a folder, or a repository of the hub, "user/name".
            model, force: as in `load_steerer`; of activations, only the weights are compared.
            hub: `revision`, `token`, `cache_dir`, `local_files_only` of the hub's download.

        Raises:
            LoadError: no such folder or repository. MismatchError: it holds something else, or was changed.
        """
        return cls._from_folder(find_folder(place, **hub), model, force)

    @classmethod
    def _from_folder(cls: type[Shared], folder: Path, model: Any, force: bool) -> Shared:
        raise NotImplementedError

    def save(self, *_: Any, **__: Any) -> None:
        """Not available: nnsight adds a `save` of its own to every object, which would be called here instead.

        Raises:
            SteerlabError: always.
        """
        raise SteerlabError(f"a {type(self).__name__} is saved with save_pretrained(folder)")

    def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
        """The README.md: what this is, what it was fitted on, and how to use it."""
        facts, name = self._card_facts(), type(self).__name__
        base = str(facts.get("model") or "")
        data = ModelCardData(
            library_name="steerlab",
            tags=["steering-vectors", name.lower()],
            base_model=base if _HUB_NAME.fullmatch(base) and not Path(base).exists() else None,
        )
        rows = "\n".join(f"| {key} | {str(value).replace('|', '/')} |" for key, value in facts.items())
        module = "steerlab.methods" if type(self).__module__.startswith("steerlab.methods") else type(self).__module__
        use = f'from {module} import {name}\n\nloaded = {name}.from_pretrained("user/name", model)'
        text = f"A `{name}` of [steerlab](https://pypi.org/project/steerlab).\n\n| what | value |\n|---|---|\n{rows}"
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n{text}\n\n```python\n{use}\n```\n")

    def _card_facts(self) -> dict[str, Any]:
        """What the card says about this object, by name."""
        return {}


def find_folder(place: str | Path, **hub: Any) -> Path:
    """A folder as it is, or the downloaded snapshot of a repository of the hub.

    Raises:
        LoadError: there is neither, or options of the hub for a folder.
    """
    check_type("the folder or repository", place, (str, Path), "its name, and then the model", LoadError)
    unknown = sorted(set(hub) - set(_HUB_OPTIONS))
    if unknown or (hub and Path(place).exists()):
        why = "the hub takes " + ", ".join(_HUB_OPTIONS) if unknown else f"{str(place)!r} is a folder on this machine"
        raise LoadError(f"{', '.join(unknown or hub)}: {why}")
    if Path(place).exists() or isinstance(place, Path) or place.count("/") != 1 or place.startswith((".", "/", "~")):
        return Path(place).expanduser()
    try:
        return Path(snapshot_download(place, allow_patterns=_OURS, **hub))
    except Exception as error:
        raise LoadError(
            f"{place!r} is no folder here, and the hub gives no such repository ({first_line(error)}). Check the name, "
            "and log in with `hf auth login` or token= for a private one"
        ) from error


def first_line(error: BaseException) -> str:
    """What an error of the hub says, without its details; its class if it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
