"""The default guest: kernel, initrd and root image made of distribution packages, the same bytes from the same inputs.

Owns everything below ``/var/lib/kata-shimd/guest`` and the cache of downloaded packages. Imports the base only.
A guest that is visible under its digest is complete; a build that failed leaves nothing behind, and ``current`` always names
a whole guest.
"""
