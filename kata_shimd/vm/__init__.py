"""The south edge towards the virtual machine: one QEMU and its virtiofsd, from a frozen `VmSpec` to a dialled guest.

Owns the command lines, the processes, QMP, the console and the channel to the guest. May import the base, `kata_shimd.host`
and the pod's ports and values. Must never happen: a process or mount without a record in the ledger, a wait that does not end
with QEMU's life or a deadline, a byte from the guest that is trusted.
"""
