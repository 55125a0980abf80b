"""Puts the shipped checkpoint into the wheel, inside the package. An editable install finds it in the checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WithWeights(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """weights/... becomes gptcli/weights/..., without what only its making needs."""
        if version == "editable":
            return
        weights = Path(self.root) / "weights"
        for path in sorted(weights.rglob("*")):
            place = path.relative_to(weights)
            if path.is_file() and place.parts[0] != "making":
                build_data["force_include"][str(path)] = f"gptcli/weights/{place.as_posix()}"
