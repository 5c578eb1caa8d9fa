"""What outlives the daemon: journals of containerd's connections, the record of the pod's state, and the keeper that holds them.

A daemon that is killed between any two instructions is followed by another that goes on where it was. How that is achieved is in
`docs/keeper.md`; nothing here knows what a request means.
"""
