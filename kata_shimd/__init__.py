"""containerd-shim-kata-v2: every pod in its own virtual machine, one asyncio daemon per pod."""

__version__ = "0.1.0"
