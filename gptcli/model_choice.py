"""Which model a command runs when the command line does not say."""

from __future__ import annotations

from collections.abc import Mapping

from gptcli.errors import NotFound
from gptcli.settings import Setting


def chosen_model(settings: Mapping[str, Setting]) -> str:
    """The name from the flag, the environment or the config file. Raises NotFound where none says one."""
    name = settings["model"].value
    if name is None:
        raise NotFound("no model is given", hint="name a folder: --model DIR, or set GPTCLI_MODEL")
    return str(name)
