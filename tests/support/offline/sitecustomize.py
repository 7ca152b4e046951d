"""With this folder on PYTHONPATH every attempt to reach the network fails, and is written to the file NETWORK_LOG."""

import os
import socket
import sys
import traceback

ATTEMPTS = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname")


def watch(event, arguments):
    if event not in ATTEMPTS or getattr(arguments[0], "family", socket.AF_INET) == socket.AF_UNIX:
        return
    with open(os.environ["NETWORK_LOG"], "a") as log:
        log.write(f"{sys.argv} {event} {arguments[1:]!r}\n{''.join(traceback.format_stack(limit=12))}\n")
    raise OSError(101, "the network is cut off")


if "NETWORK_LOG" in os.environ:
    sys.addaudithook(watch)
