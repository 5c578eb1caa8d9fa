"""Pods that are clones of a template, on real machines: who they are, what they do when a template is bad, and what is left."""
