"""Templates: a guest that was booted once, up to its agent, and is copied for each pod.

    key.py        what a template depends on
    store.py      templates on disk: found, believed or not, made known, removed
    memory.py     files of guest RAM, copied without what is empty
    migration.py  device state out of one QEMU and into another
    maker.py      boots the guest and makes a template of it
    clone.py      a pod's VM from a template

A template has neither network nor shared directory: both are plugged into each clone. No page is shared between clones, so devices
that are served by another process see the guest's memory, and what one pod does to its memory no other can measure.
"""
