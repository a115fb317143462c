"""Real processes, real sockets, real disks, real time: what the command line and the node promise to a machine.

Every program is a child of the test and is killed when it ends. Ports are free ones. Waiting is for a condition, with a bound so generous
that only a broken promise reaches it; where the promise itself is a time, the test says which.
"""
