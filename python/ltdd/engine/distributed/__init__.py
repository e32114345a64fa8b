"""Work on one run with several processes, which torchrun starts and torch.distributed connects.

Each process is a *rank*. All of them run the same program on the same data. What a stage maps over
units (classes, batches, epochs) is shared out (`units.each`), everything else is done by all of
them alike; only the first rank writes files and prints. A process by itself is the same program
with one rank, and gets the same bytes.
"""
