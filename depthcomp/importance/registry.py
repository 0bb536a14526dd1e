"""Registry of presets, the importances that users give by name."""

from __future__ import annotations

from depthcomp.importance.protocol import Importance
from depthcomp.importance.table import ImportanceTable
from depthcomp.registry import Registry

__all__ = ["PRESETS", "preset_name"]
PRESETS: Registry[Importance] = Registry("depthcomp.importance")


def preset_name(table: ImportanceTable) -> str:
    """Return the name of the preset with a table's settings, for example "kim23"; else the table's method.

    Presets of one method differ in their settings. A calibrated table with another memory than the preset's is still
    called "calibrated", after its method.
    """
    same = (name for name, preset in PRESETS.items() if dict(table.settings) == dict(preset.settings))
    return next(same, table.method)
