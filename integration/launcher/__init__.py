"""The launcher alone: real processes, mounts, cgroups and links, and a stand-in where the daemon will be."""
