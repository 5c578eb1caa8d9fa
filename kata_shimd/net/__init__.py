"""The pod's network on the host: its namespace, what is found there, and the wires from there to the VM (`docs/network.md`).

The netlink library is imported where it is used, and so only by a pod that has a network.
"""
