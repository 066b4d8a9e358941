"""The part of the upstream that takes work on and calls back later: once, twice, too late, or never.

It does what an upstream may do and no more: it signs what it sends, tries again until somebody has understood it, and
remembers what it was told. A fate that a caller would curse counts as a fault of the schedule.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson

from simulated.loop import EPOCH, App
from triptych.schemas import ErrorCode, Json
from triptych.tools.sdk.call import Accepted, Call
from triptych.tools.sdk.failure import ToolFailure

if TYPE_CHECKING:
    from simulated.world import Process, World

URL = "https://desk.simulated"
KEY = b"the secret of the workshop"
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"
TIMEOUT_MS = 20_000
"""So long a call may take as a whole."""
WITHIN_S = 10.0
"""A callback without an answer for so long is sent again."""
TRIES_MAX = 200
FATES = ("done",) * 16 + ("progress", "at once", "failed", "late", "never")
FAULTS = frozenset({"failed", "late", "never"})
SOON_S = ((0.0, 0.004), (0.0, 0.1), (0.1, 3.0))
"""Before the acceptance is there, about when it is stored, and when everybody has gone on to something else."""
LATE_S = (15.0, 45.0)


@dataclass
class Order:
    """Work that was taken on."""

    kind: str
    key: str
    answer: dict[str, Json]
    url: str
    fate: str = ""
    state: str = "working"


@dataclass
class Message:
    """A callback on its way, and whether somebody has understood it."""

    order: Order
    body: bytes
    number: int
    """No two messages have the same, as Standard Webhooks wants it of their ids."""
    tries: int = 0
    is_over: bool = False


class Workshop:
    """What was ordered, and who was told what about it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.orders: list[Order] = []
        self.on_the_way: list[Message] = []
        self._sent = itertools.count()
        self.kept: Counter[str] = Counter()
        """How often the first word about an order was understood, by its address."""
        self._may_be_forgotten: set[str] = set()
        """Return the addresses at which a failure was told. No call has to wait there any more."""

    def take_on(self, kind: str, key: str, answer: dict[str, Json], call: Call[Any]) -> dict[str, Json] | Exception:
        """Accept an order, or give its answer immediately."""
        known = self._order_of(key) if kind == "order" else None
        if known is not None and known.state == "done":
            return known.answer
        order = known or Order(kind, key, answer, str(call.callback_url))
        if known is None:
            self.orders.append(order)
        if known is None or known.fate in {"late", "never"}:
            self._decide(order)
        if order.fate == "at once":
            order.state = "done"
            return order.answer
        return Accepted()

    def is_known(self, key: str) -> bool:
        """Tell whether an order of this key is under way or done."""
        return self._order_of(key) is not None

    def look_up(self, key: str) -> dict[str, Json] | Exception | None:
        """Return the result of the orders of a key; None when all have failed."""
        order = self._order_of(key)
        if order is None:
            return None
        return order.answer if order.state == "done" else ToolFailure(ErrorCode.IN_DOUBT, "it is being made")

    def _order_of(self, key: str) -> Order | None:
        return next((order for order in self.orders[::-1] if order.key == key and order.state != "failed"), None)

    def _decide(self, order: Order) -> None:
        """Choose when an order is done, and what is told about it."""
        world, draw = self._world, self._world.random
        order.fate = draw.choice(FATES)
        world.played[f"orders, {order.fate}"] += 1
        world.note("workshop", order.fate, order.key)
        if order.fate in FAULTS:
            world.fault_count += 1
            world.faults[f"callback {order.fate}"] += 1
        if order.fate == "progress":
            self._send(order, {"state": "working"})
        if order.fate != "at once":
            within_s = LATE_S if order.fate == "late" else draw.choice(SOON_S)
            world.scheduler.after(draw.uniform(*within_s), self._finish, order, order.fate)

    def _finish(self, order: Order, fate: str) -> None:
        if order.state != "working" or order.fate != fate:
            return
        order.state = "failed" if fate == "failed" else "done"
        self._world.note("workshop", order.state, order.key)
        if fate == "failed":
            self._world.upstream.denials[order.key] += 1
            self._may_be_forgotten.add(order.url)
        if fate != "never":
            for _ in range(self._world.random.choice((1, 1, 1, 2))):
                self._send(order, {"state": order.state, "answer": order.answer})

    # --- calling back -----------------------------------------------------------------------------

    def _send(self, order: Order, body: dict[str, Any]) -> None:
        message = Message(order, orjson.dumps(body), next(self._sent))
        self.on_the_way.append(message)
        self._world.after_a_moment(self._try, message)

    def _try(self, message: Message) -> None:
        """Call back once, at the process of the tool that the load balancer picks."""
        if message.is_over:
            return
        message.tries += 1
        world = self._world
        process = world.random.choice([one for one in world.processes if one.service == "desk" and not one.is_leaving])
        fault = world.strike("upstream", process)
        world.strike_process(fault, "before", process)
        if (app := process.loop.app) is None or fault == "refused" or process.is_dead:
            world.played["callbacks without a process"] += 1
            self._try_again(message)
            return
        world.note("callback", process.instance, message.order.key)

        def answered(status: int, body: bytes) -> None:
            world.strike_process(fault, "after", process)
            if fault != "answer_lost":
                world.after_a_moment(self._hear, message, status, body)

        process.loop.create_task(self._post(process, app, message, answered))
        world.scheduler.after(WITHIN_S, self._try_again, message, message.tries)

    def _try_again(self, message: Message, after_try: int | None = None) -> None:
        if message.is_over or (after_try is not None and message.tries > after_try):
            return
        if message.tries >= TRIES_MAX:
            self._world.violations.append(f"{message.order.key}: no process has understood its callback")
            return
        self._world.scheduler.after(self._world.random.uniform(0.2, 3.0), self._try, message)

    async def _post(self, process: Process, app: App, message: Message, answered: Callable[[int, bytes], None]) -> None:
        """Build the request as the process's server gives it to its endpoint."""
        path, headers = message.order.url.removeprefix(URL), self._signed(message)
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
        said: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": message.body, "more_body": False}

        async def send(part: Any) -> None:
            said.append(part)

        try:
            await app(scope, receive, send)
        except asyncio.CancelledError:
            raise  # it is killed
        except Exception as error:  # noqa: BLE001 - the endpoint foresees what can happen to it
            self._world.violations.append(f"{process.instance}: a callback ended with {error!r}")
            return
        if not process.loop.is_closed_down:
            # Not within the process, which this may kill.
            self._world.scheduler.after(0.0, answered, said[0]["status"], said[1]["body"])

    def _signed(self, message: Message) -> list[tuple[bytes, bytes]]:
        """Build the headers of Standard Webhooks."""
        name = b"message-%d" % message.number
        stated = b"%d" % int(EPOCH.timestamp() + self._world.scheduler.now)
        digest = hmac.digest(KEY, b".".join((name, stated, message.body)), hashlib.sha256)
        signature = b"v1," + base64.b64encode(digest)
        return [(b"webhook-id", name), (b"webhook-timestamp", stated), (b"webhook-signature", signature)]

    def _hear(self, message: Message, status: int, body: bytes) -> None:
        """Return the tool's answer to a callback."""
        order, word = message.order, orjson.loads(body)["status"]
        self._world.note("callback answered", status, word, order.key)
        self._world.played[f"callbacks answered {status} {word}"] += 1
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self._try_again(message, message.tries)
            return
        if word in {"taken", "kept"}:
            self.kept[order.url] += 1
            if self.kept[order.url] > 1 and not self._world.restore.is_there:
                self._world.violations.append(f"{order.key}: two callbacks were the first at {order.url}")
        elif status != HTTPStatus.OK and not self._world.restore.is_there and not self._is_in_order(order, status):
            self._world.violations.append(f"{order.key}: its callback was answered {status} {word}")
        if not message.is_over:
            message.is_over = True
            self.on_the_way.remove(message)
            self._world.look_whether_it_is_over()

    def _is_in_order(self, order: Order, status: int) -> bool:
        """Tell whether a callback may get this answer: that it is not an end yet, or that no call waits any more."""
        if status == HTTPStatus.ACCEPTED:
            return order.fate == "progress"
        return status == HTTPStatus.NOT_FOUND and order.url in self._may_be_forgotten
