"""`python slow_cable.py SECONDS NAME ADDRESS NAME ADDRESS`: joins two network namespaces by a cable of that delay.

It carries their packets itself, since not every kernel has what `tc netem` needs. It prints a line once it is there.
"""

import collections
import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import time


def plug(name, address):
    """The end of the cable in a namespace, which this process enters."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(os.open(f"/run/netns/{name}", os.O_RDONLY), 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, 0x400454CA, struct.pack("16sH", b"slow", 0x1001))  # TUNSETIFF: IFF_TUN | IFF_NO_PI
    subprocess.run(["ip", "addr", "add", f"{address}/24", "dev", "slow"], check=True)
    subprocess.run(["ip", "link", "set", "slow", "up"], check=True)
    return end


def main(delay, *names_and_addresses):
    one, two = plug(*names_and_addresses[:2]), plug(*names_and_addresses[2:])
    print("joined", flush=True)
    other, under_way = {one: two, two: one}, collections.deque()
    while True:
        left = max(0, under_way[0][0] - time.monotonic()) if under_way else None
        for end in select.select([one, two], [], [], left)[0]:
            under_way.append((time.monotonic() + delay, other[end], os.read(end, 65536)))
        while under_way and under_way[0][0] <= time.monotonic():
            _, end, packet = under_way.popleft()
            os.write(end, packet)


if __name__ == "__main__":
    main(float(sys.argv[1]), *sys.argv[2:])
