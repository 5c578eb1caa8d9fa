"""A daemon that is killed, and nobody who notices: containerd, its clients, the containers."""
