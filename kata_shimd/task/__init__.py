"""The north edge: the Task service as containerd calls it, its errors, and the events that go back.

No generated type travels south of here, and no error leaves except through `boundary`.
"""
