"""Which model a command runs when the command line does not say, and where an adapter is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gptcli.errors import NotFound
from gptcli.folder import SHIPPED, shipped
from gptcli.settings import Setting

ADAPTER = "adapter_config.json"


def chosen_model(settings: Mapping[str, Setting]) -> str:
    """The name from the flag, the environment or the config file, else the shipped model. Raises NotFound without."""
    named = settings.get("model")
    if named is not None and named.value is not None:
        return str(named.value)
    if shipped() is None:
        raise NotFound("no model is given", hint="name a folder: --model DIR, or set GPTCLI_MODEL")
    return SHIPPED


def adapter_folder(name: str) -> Path:
    """An adapter by its folder, or one of those that come with the program by its name. Raises NotFound."""
    home = shipped()
    places = [Path(name)] + ([home / name] if home and Path(name).name == name else [])
    for place in places:
        if (place / ADAPTER).is_file():
            return place
    known = sorted(p.parent.name for p in home.glob(f"*/{ADAPTER}")) if home else []
    hint = f"{ADAPTER} is not in {name}" if Path(name).is_dir() else f"those that come with gptcli: {', '.join(known)}"
    raise NotFound(f"no adapter {name}", hint=hint if known or Path(name).is_dir() else "name the folder of an adapter")
