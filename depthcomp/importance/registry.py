"""Registry of the importances that users give by name."""

from __future__ import annotations

from depthcomp.importance.protocol import Importance
from depthcomp.importance.table import ImportanceTable
from depthcomp.registry import Registry

__all__ = ["PRESETS", "preset_name"]

PRESETS: Registry[Importance] = Registry("depthcomp.importance")


def preset_name(table: ImportanceTable) -> str:
    """Return the preset whose settings a table was scored with, such as "kim23"; else the table's method.

    Presets of one method are told apart by their settings. The memory of calibrated fits is a setting, too, but a table
    with another memory is still called "calibrated".
    """
    same = (name for name, preset in PRESETS.items() if dict(table.settings) == dict(preset.settings))
    return next(same, table.method)
