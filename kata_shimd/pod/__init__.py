"""The domain: a pod, its containers, their processes, and the rules of their lives.

It states what it needs from the host, the VM and the guest in `ports`, and imports only the base: no generated message, no socket,
no QMP and no subprocess may appear here.
"""
