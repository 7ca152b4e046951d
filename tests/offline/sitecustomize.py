"""With this folder on PYTHONPATH every attempt to reach the network fails, and is written to the file NETWORK_LOG."""

import os
import socket
import sys
import traceback


def watch(event, arguments):
    if event == "socket.connect" and arguments[0].family not in (socket.AF_INET, socket.AF_INET6):
        return
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        caller = "".join(traceback.format_stack(limit=12))
        with open(os.environ["NETWORK_LOG"], "a") as log:
            log.write(f"{sys.argv} {event} {arguments[1:]!r}\n{caller}\n")
        raise OSError(101, "the network is cut off")


if "NETWORK_LOG" in os.environ:
    sys.addaudithook(watch)
