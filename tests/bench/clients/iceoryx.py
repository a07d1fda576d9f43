"""iceoryx2 as its examples show it: messages of so many slots of 128 bytes from one process to another. https://github.com/eclipse-iceoryx/iceoryx2

``send|receive NAME rate N SLOTS``: N messages, as fast as they go; the receiver prints messages a second. ``send|receive NAME way N SLOTS``:
one by one, stamped; the receiver spins and prints each one's nanoseconds. The sender begins, and ends, when it is told a line.
"""

import ctypes
import json
import sys
import time

import iceoryx2

PAUSE_S = 0.0002
(ROLE, NAME, WHAT), (COUNT, SLOTS) = sys.argv[1:4], map(int, sys.argv[4:])


class Payload(ctypes.Structure):
    _fields_ = (("stamp", ctypes.c_uint64), ("rest", ctypes.c_uint8 * (128 * SLOTS - 8)))


def service() -> object:
    node = iceoryx2.NodeBuilder.new().create(iceoryx2.ServiceType.Ipc)
    builder = node.service_builder(iceoryx2.ServiceName.new(NAME)).publish_subscribe(Payload)
    return node, builder.subscriber_max_buffer_size(1024).enable_safe_overflow(False).open_or_create()


def send() -> None:
    _node, opened = service()
    builder = opened.publisher_builder().backpressure_strategy(iceoryx2.BackpressureStrategy.RetryUntilDelivered)
    publisher = builder.create()
    print("ready", flush=True)
    sys.stdin.readline()
    payload = Payload()
    for _ in range(COUNT):
        if WHAT == "way":
            time.sleep(PAUSE_S)
        sample = publisher.loan_uninit()
        payload.stamp = time.monotonic_ns()
        sample.write_payload(payload).send()
    sys.stdin.readline()


def receive() -> None:
    _node, opened = service()
    subscriber = opened.subscriber_builder().create()
    print("ready", flush=True)
    seen, began, nanoseconds = 0, 0, []
    while seen < COUNT:
        sample = subscriber.receive()
        if sample is None:
            continue
        if WHAT == "way":
            nanoseconds.append(time.monotonic_ns() - sample.payload().contents.stamp)
        began = began or time.monotonic_ns()
        seen += 1
    print(json.dumps(nanoseconds or (COUNT - 1) / (time.monotonic_ns() - began) * 1e9), flush=True)


{"send": send, "receive": receive}[ROLE]()
