"""The agent in the guest, spoken to over ttrpc (`kata.md` §3).

It is given a connected socket, never a VM. Everything that comes back is hostile until checked: bounded in size, number and
time, and no text of the guest's is believed or left unescaped.
"""
