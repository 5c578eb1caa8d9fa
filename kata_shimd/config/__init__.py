"""Configuration: Kata's `configuration.toml`, its drop-ins, the runtime options and the sandbox's annotations, made into one
frozen tree before a pod does anything.

Imports nothing but the standard library and ``kata_shimd.errors``. Below the composition roots nothing else reads settings:
no environment, no arguments, no file. The tables in ``keys*.py`` are the truth; `docs/configuration.md` is made from them.
"""

from kata_shimd.config.load import Loaded, defaults, load
from kata_shimd.config.model import Accelerator, Config, Timeouts

__all__ = ["Accelerator", "Config", "Loaded", "Timeouts", "defaults", "load"]
