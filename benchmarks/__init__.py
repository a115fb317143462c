"""Benchmarks: one command per figure, and `python -m benchmarks.run` for all of them.

The node runs in a process of its own, pinned to the first core; the load comes from this process, pinned to the last one, over raw
sockets with frames that are encoded beforehand. Nothing of the client library takes part. Linux only: epoll and /proc are used.

B1  A figure is a median of several runs, with the smallest and the largest.
B2  Every figure stands beside a baseline taken in the same minutes on the same cores: the least that any Python program must do for the
    same traffic. Machines differ, ratios travel.
B3  Every rate is also given per second of processor time of the node, and with the load of the generator, so that a figure which the
    generator or another program limits can be seen to be one.
B4  Every figure says how busy the machine was with other things (`other_cpu`, in cores): above a few percent it measures those, too.
B5  Every answer is checked. A run with a wrong answer is no figure but an error.
"""
