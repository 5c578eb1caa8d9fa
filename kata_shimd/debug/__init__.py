"""For people: which pods there are, what happened to one and most likely why, and whether this host can run any.

Reads ledgers, journals and the host; changes nothing. May import the base and `kata_shimd.pod`: what only the VM's side
knows is handed in by the composition root. Must never happen: a text that came from a guest reaching a terminal unescaped.
"""
