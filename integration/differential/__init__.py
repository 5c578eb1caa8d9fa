"""Differential truth: the same sequences of Task RPCs on containerd-shim-runc-v2 and on ours, compared.

A sequence is data (`steps`), made from a seed (`generate`) that knows what runc does (`model`). `driver` replays it on a running
shim (`shim`) under a stand-in for containerd (`recorder`); `compare` tells how two records differ, `intended` which differences
are meant (in the words of `rules`), `lawful` what must hold of ours alone, and `judge` what is left; `page` writes it for people.
`python -m integration.differential --help` runs as many as you like.

What must never happen: a difference that is neither a rule of `intended` nor a failure, or a rule that lets any answer pass.
"""
