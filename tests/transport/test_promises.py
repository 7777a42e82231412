"""What ``transport.base`` promises, asked of every broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from edgefed.errors import Disconnected, PayloadTooLarge
from edgefed.transport.base import Connected, ConnectionLost, Message, Transport, Will

# The fixtures' types are spelled in conftest.py, which importlib mode does not let tests import.
Read = Callable[[Transport], Any]


async def test_the_first_event_says_that_the_connection_stands(broker: Any, read: Read) -> None:
    async with broker.connect("a") as a:
        reader = read(a)
        await reader.until(lambda r: r.events)
        assert reader.events == [Connected(session_resumed=False, max_payload_bytes=256 * 1024)]
        assert a.max_payload_bytes == 256 * 1024


async def test_a_message_reaches_those_who_subscribed(broker: Any, read: Read) -> None:
    async with broker.connect("a") as a, broker.connect("b") as b, broker.connect("c") as c:
        at_b, at_c = read(b), read(c)
        await b.subscribe("fleet/+/up")
        await c.subscribe("fleet/#")
        await a.publish("fleet/1/up", b"one")
        await a.publish("fleet/1/up/deep", b"two")
        await a.publish("elsewhere", b"three")
        await a.publish("fleet/2/up", b"four")
        await at_b.until(lambda r: b"four" in r.payloads)
        await at_c.until(lambda r: b"four" in r.payloads)
        assert at_b.messages == [Message("fleet/1/up", b"one"), Message("fleet/2/up", b"four")]
        assert at_c.payloads == [b"one", b"two", b"four"]


async def test_a_client_hears_itself_and_nothing_after_unsubscribing(broker: Any, read: Read) -> None:
    async with broker.connect("a") as a:
        reader = read(a)
        await a.subscribe("x")
        await a.subscribe("end")
        await a.publish("x", b"1")
        await a.unsubscribe("x")
        await a.publish("x", b"2")
        await a.publish("end", b"")
        await reader.until(lambda r: r.messages and r.messages[-1].topic == "end")
        assert reader.payloads == [b"1", b""]


async def test_payloads_of_every_size_arrive_unchanged(broker: Any, read: Read) -> None:
    async with broker.connect("a") as a, broker.connect("b") as b:
        reader = read(b)
        await b.subscribe("x")
        sent = [b"", b"\x00\xff", bytes(range(256)) * 400, bytes(a.max_payload_bytes)]
        for payload in sent:
            await a.publish("x", payload)
        await reader.until(lambda r: len(r.messages) >= len(sent))
        assert reader.payloads == sent


async def test_a_payload_over_the_limit_is_refused_before_it_is_sent(broker: Any, read: Read) -> None:
    async with broker.connect("a") as a:
        reader = read(a)
        await a.subscribe("x")
        with pytest.raises(PayloadTooLarge) as refused:
            await a.publish("x", bytes(a.max_payload_bytes + 1))
        assert (refused.value.size_bytes, refused.value.limit_bytes) == (256 * 1024 + 1, 256 * 1024)
        await a.publish("x", b"fine")
        await reader.until(lambda r: r.messages)
        assert reader.payloads == [b"fine"]
        assert not reader.losses


async def test_a_retained_message_waits_for_later_subscribers(broker: Any, read: Read) -> None:
    async with broker.connect("a") as a, broker.connect("b") as b, broker.connect("c") as c:
        at_b, at_c = read(b), read(c)
        await b.subscribe("state")
        await a.publish("state", b"old", retain=True)
        await a.publish("state", b"new", retain=True)
        await at_b.until(lambda r: len(r.messages) >= 2)
        assert at_b.messages == [Message("state", b"old"), Message("state", b"new")]  # to b it was news
        await c.subscribe("state")
        await at_c.until(lambda r: r.messages)
        assert at_c.messages == [Message("state", b"new", retained=True)]


async def test_an_empty_payload_removes_a_retained_message(broker: Any, read: Read) -> None:
    async with broker.connect("a") as a, broker.connect("b") as b:
        reader = read(b)
        await a.publish("state", b"old", retain=True)
        await a.publish("state", b"", retain=True)
        await b.subscribe("state")
        await b.subscribe("end")
        await a.publish("end", b"end")
        await reader.until(lambda r: b"end" in r.payloads)
        assert reader.payloads == [b"end"]


async def test_the_will_is_published_when_a_client_disappears(broker: Any, read: Read) -> None:
    async with broker.connect("watcher") as watcher, broker.connect("later") as later:
        seen, seen_later = read(watcher), read(later)
        await watcher.subscribe("state")
        async with broker.connect("doomed", Will("state", b"lost")) as doomed:
            await doomed.publish("state", b"here", retain=True)
            await broker.cut(doomed)
            await seen.until(lambda r: b"lost" in r.payloads)
        await later.subscribe("state")
        await seen_later.until(lambda r: r.messages)
        assert seen.payloads == [b"here", b"lost"]
        assert seen_later.messages == [Message("state", b"lost", retained=True)]


async def test_closing_publishes_the_last_message_and_not_the_will(broker: Any, read: Read) -> None:
    async with broker.connect("watcher") as watcher, broker.connect("later") as later:
        seen, seen_later = read(watcher), read(later)
        await watcher.subscribe("state")
        await watcher.subscribe("end")
        async with broker.connect("polite", Will("state", b"lost")) as polite:
            await polite.close(Message("state", b"gone home", retained=True))
        await later.subscribe("state")
        await seen_later.until(lambda r: r.messages)
        assert seen_later.messages == [Message("state", b"gone home", retained=True)]
        await later.publish("end", b"end")
        await seen.until(lambda r: b"end" in r.payloads)
        assert seen.payloads == [b"gone home", b"end"]


async def test_messages_of_one_sender_arrive_in_order(broker: Any, read: Read) -> None:
    async with broker.connect("a") as a, broker.connect("b") as b:
        reader = read(b)
        await b.subscribe("x")
        sent = [str(number).encode() for number in range(200)]
        for payload in sent:
            await a.publish("x", payload)
        await reader.until(lambda r: len(r.messages) >= len(sent))
        assert reader.payloads == sent


async def test_many_publishes_may_be_under_way_at_once(broker: Any, read: Read) -> None:
    async with broker.connect("a") as a, broker.connect("b") as b:
        reader = read(b)
        await b.subscribe("x")
        sent = [str(number).encode() for number in range(300)]
        await asyncio.gather(*(a.publish("x", payload) for payload in sent))
        await reader.until(lambda r: len(r.messages) >= len(sent))
        assert sorted(reader.payloads) == sorted(sent)


async def test_several_clients_talk_to_each_other(broker: Any, read: Read) -> None:
    names = [f"device-{number}" for number in range(6)]
    async with (
        broker.connect(names[0]) as t0,
        broker.connect(names[1]) as t1,
        broker.connect(names[2]) as t2,
        broker.connect(names[3]) as t3,
        broker.connect(names[4]) as t4,
        broker.connect(names[5]) as t5,
    ):
        transports = dict(zip(names, (t0, t1, t2, t3, t4, t5), strict=True))
        readers = {name: read(transport) for name, transport in transports.items()}
        for name, transport in transports.items():
            await transport.subscribe(f"to/{name}")
        await asyncio.gather(
            *(
                transport.publish(f"to/{other}", name.encode())
                for name, transport in transports.items()
                for other in names
            )
        )
        for reader in readers.values():
            await reader.until(lambda r: len(r.messages) >= len(names))
            assert sorted(reader.payloads) == [name.encode() for name in names]


async def test_nothing_is_lost_while_the_consumer_is_busy(broker: Any, read: Read) -> None:
    async with broker.connect("a") as a, broker.connect("b") as b:
        await b.subscribe("x")
        sent = [number.to_bytes(2, "big") * 20_000 for number in range(300)]
        await asyncio.gather(*(a.publish("x", payload) for payload in sent))
        reader = read(b)
        await reader.until(lambda r: len(r.messages) >= len(sent))
        assert reader.payloads == sent


async def test_a_consumer_may_publish_and_subscribe_in_its_loop(broker: Any, read: Read) -> None:
    async with broker.connect("a") as a, broker.connect("b") as b:
        answers = read(a)
        await a.subscribe("answer")
        await a.publish("early", b"kept", retain=True)
        await b.subscribe("question")

        async def serve() -> None:
            async for event in b.events():
                if isinstance(event, Message) and event.topic == "question":
                    await b.subscribe("early")
                    await b.publish("answer", event.payload.upper())

        server = asyncio.create_task(serve())
        await asyncio.gather(*(a.publish("question", b"q%d" % number) for number in range(50)))
        await answers.until(lambda r: len(r.messages) >= 50)
        assert answers.payloads == [b"Q%d" % number for number in range(50)]
        await b.close()
        await server


async def test_after_a_cut_everything_is_as_before(broker: Any, read: Read) -> None:
    async with broker.connect("a") as a, broker.connect("b") as b:
        reader = read(b)
        await b.subscribe("x")
        await b.subscribe("y")
        await b.unsubscribe("y")
        await broker.cut(b)
        await reader.until(lambda r: len(r.connects) == 2)
        await a.publish("y", b"no")
        await a.publish("x", b"yes")
        await reader.until(lambda r: r.messages)
        assert [type(event) for event in reader.events] == [Connected, ConnectionLost, Connected, Message]
        assert reader.connects[1].session_resumed
        assert reader.payloads == [b"yes"]
        assert not reader.losses[0].taken_over


@pytest.mark.parametrize("keeps_session", [True, False])
async def test_unsubscribing_waits_for_no_broker_and_holds_once_there_is_one(
    broker: Any, read: Read, keeps_session: bool
) -> None:
    async with broker.connect("a") as a, broker.connect("b") as b:
        reader = read(b)
        await b.subscribe("x")
        await b.subscribe("y")
        await b.subscribe("z")
        if keeps_session:
            await broker.cut(b)
        else:
            await broker.go_away()
        await reader.until(lambda r: r.losses)
        await asyncio.wait_for(b.unsubscribe("y"), 10)
        await asyncio.wait_for(b.unsubscribe("z"), 10)
        if not keeps_session:
            await broker.come_back()
        await b.subscribe("z")
        await reader.until(lambda r: len(r.connects) == 2)
        for topic in ("y", "z", "x"):
            await a.publish(topic, topic.encode())
        await reader.until(lambda r: any(message.topic == "x" for message in r.messages))
        assert reader.payloads == [b"z", b"x"]


async def test_what_came_while_a_client_was_away_is_delivered(broker: Any, read: Read) -> None:
    async with broker.connect("a") as a:
        async with broker.connect("b") as b:
            await b.subscribe("x")
        await a.publish("x", b"1")
        await a.publish("x", b"2", retain=True)
        async with broker.connect("b") as b:
            reader = read(b)
            await reader.until(lambda r: len(r.messages) >= 2)
            assert reader.connects[0].session_resumed
            assert reader.messages[:2] == [Message("x", b"1"), Message("x", b"2")]


async def test_a_message_that_was_not_handled_is_delivered_again(broker: Any, read: Read) -> None:
    async with broker.connect("a") as a:
        async with broker.connect("b") as b:
            await b.subscribe("x")
            for payload in (b"1", b"2", b"3"):
                await a.publish("x", payload)
            async for event in b.events():
                if isinstance(event, Message) and event.payload == b"2":
                    break  # as if the process had died over it
            await broker.cut(b)
            await b.close()
        async with broker.connect("b") as b:
            reader = read(b)
            await reader.until(lambda r: b"3" in r.payloads)
            # The acknowledgement of b"1" may have been cut off too; then it comes once more.
            assert reader.payloads[-2:] == [b"2", b"3"]


async def test_publishes_wait_out_an_absence_of_the_broker(broker: Any, read: Read) -> None:
    async with broker.connect("a") as a, broker.connect("b") as b:
        at_a, at_b = read(a), read(b)
        await b.subscribe("x")
        await broker.go_away()
        await at_a.until(lambda r: r.losses)
        await at_b.until(lambda r: r.losses)
        with pytest.raises(Disconnected, match=r"within 0\.05 s"):
            await a.publish("x", b"given up", timeout_s=0.05)
        waiting = [asyncio.create_task(a.publish("x", b"%d" % number, retain=True)) for number in range(3)]
        subscribing = asyncio.create_task(b.subscribe("y"))
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in (*waiting, subscribing))
        await broker.come_back()
        await asyncio.gather(*waiting, subscribing)
        await at_b.until(lambda r: len(r.connects) == 2)
        await a.publish("y", b"y")
        await at_b.until(lambda r: b"y" in r.payloads and b"2" in r.payloads)
        assert b"given up" not in at_b.payloads


async def test_publishes_under_way_survive_a_cut(broker: Any, read: Read) -> None:
    async with broker.connect("a") as a, broker.connect("b") as b:
        reader = read(b)
        await b.subscribe("x")
        sent = [number.to_bytes(1, "big") * 100_000 for number in range(60)]
        publishing = asyncio.gather(*(a.publish("x", payload) for payload in sent))
        await asyncio.sleep(0)
        await broker.cut(a)
        await publishing
        await reader.until(lambda r: set(r.payloads) == set(sent))


async def test_a_second_client_with_the_same_id_ends_the_first(broker: Any, read: Read) -> None:
    async with (
        broker.connect("same", reconnect_max_s=60.0) if hasattr(broker, "port") else broker.connect("same") as first
    ):
        at_first = read(first)
        await first.subscribe("x")
        async with broker.connect("same") as second, broker.connect("other") as other:
            at_second = read(second)
            await at_first.until(lambda r: r.losses)
            await second.subscribe("x")
            await other.publish("x", b"for the second")
            await at_second.until(lambda r: r.messages)
            assert at_second.payloads == [b"for the second"]
            assert at_first.payloads == []


async def test_a_closed_transport_says_so(broker: Any, read: Read) -> None:
    async with broker.connect("a") as a:
        reader = read(a)
        await a.subscribe("x")
        await a.close()
        await a.close()
        for call in (a.publish("x", b""), a.subscribe("x"), a.unsubscribe("x")):
            with pytest.raises(Disconnected, match="closed"):
                await call
        await reader.stop()
        assert [event async for event in a.events()] == []


async def test_closing_wakes_everybody_who_waits(broker: Any, read: Read) -> None:
    async with broker.connect("a") as a:
        reader = read(a)
        await broker.go_away()
        await reader.until(lambda r: r.losses)
        waiting = [asyncio.create_task(call) for call in (a.publish("x", b""), a.subscribe("x"))]
        await asyncio.sleep(0)
        await a.close(Message("x", b"not sent", retained=True))
        for task in waiting:
            with pytest.raises(Disconnected, match="closed"):
                await task
        await asyncio.wait_for(reader._task, 5)  # events() ended by itself
