"""The stage is that of the failures."""

from integration.chaos.conftest import stage

__all__ = ["stage"]
