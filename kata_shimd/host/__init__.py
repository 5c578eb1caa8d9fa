"""The host: processes, mounts, FIFOs, cgroups. May import the base and the pod's ports; knows no QEMU and no agent."""
