"""FastStream: an echo, an event that adds one row, and the caller of the echo.

`python faststream_kit.py worker|driver AMQP_URI POSTGRES_URI`. An event is acknowledged after its handler has returned.
"""

import asyncio
import sys
import time

from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

IN_FLIGHT = 16


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "faststream_rows"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


def worker(broker, sessions):
    @broker.subscriber(RabbitQueue("faststream_echo", durable=True))
    async def echo(message: dict) -> dict:
        return message

    @broker.subscriber(RabbitQueue("faststream_made", durable=True), ack_policy=AckPolicy.NACK_ON_ERROR)
    async def store(message: dict) -> None:
        async with sessions.begin() as session:
            session.add(Row(text=message["text"]))


def driver(broker, sessions):
    async def repeat(message, seconds):
        latencies_ms, started_at = [], time.perf_counter()
        while (called_at := time.perf_counter()) - started_at < seconds:
            await (await broker.request(message, "faststream_echo", timeout=10)).decode()
            latencies_ms.append((time.perf_counter() - called_at) * 1000)
        return latencies_ms

    @broker.subscriber(RabbitQueue("faststream_driver", durable=True))
    async def drive(order: dict) -> dict:
        started_at = time.perf_counter()
        callers = [repeat(order["message"], order["seconds"]) for _ in range(order["at_once"])]
        latencies_ms = [latency for each in await asyncio.gather(*callers) for latency in each]
        return {"seconds": time.perf_counter() - started_at, "latencies_ms": latencies_ms}


async def main(part, amqp_uri, postgres_uri):
    # Without its log of each message.
    broker = RabbitBroker(amqp_uri, default_channel=Channel(prefetch_count=IN_FLIGHT), logger=None)
    engine = create_async_engine(postgres_uri.replace("postgresql://", "postgresql+asyncpg://"), pool_size=IN_FLIGHT)
    {"worker": worker, "driver": driver}[part](broker, async_sessionmaker(engine))
    await FastStream(broker, logger=None).run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
