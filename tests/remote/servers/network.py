"""A network of this process's own, with nothing in it but itself: nothing can leave the machine, no port is taken."""

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


class NoNetwork(Exception):
    """A private network can't be had; the message is the reason to skip."""


@contextmanager
def private_network() -> Iterator[None]:
    """This thread, and every process and thread it starts from now on, in a network namespace of their own.

    Raises:
        NoNetwork: the system does not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as before:
        if libc.unshare(CLONE_NEWNET):
            raise NoNetwork(f"a private network is refused: {os.strerror(ctypes.get_errno())} (it takes root)")
        try:
            _up(b"lo")
            yield
        finally:
            libc.setns(before.fileno(), CLONE_NEWNET)


def _up(name: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("16sh14x", name, 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(probe, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(probe, SIOCSIFFLAGS, struct.pack("16sh14x", name, flags | IFF_UP))
