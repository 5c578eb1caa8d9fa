"""The default guest, built for real and booted for real: nothing of the shim takes part."""
