"""One module a command of ``ltdd``: ``SUMMARY`` in one line, and ``run``.

A module imports what it needs when it runs, so that ``--help`` does not wait for torch.
"""
