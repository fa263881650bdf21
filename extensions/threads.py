"""Work that would hold up the event loop, in real threads."""

from eventlet import tpool


def in_thread(function, *arguments):
    """Run a blocking function in a thread of the pool, and let other greenlets run meanwhile.

    It must neither touch greenlets nor sockets of this thread; one that releases the GIL gains most.
    """
    return tpool.execute(function, *arguments)
