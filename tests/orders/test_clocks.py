"""Wrong wall clocks, also if they are set while the shop runs: every order is placed, and none after its deadline."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from uuid import uuid4

import jwt
import pytest
import requests

from dev.programs import find_faketime
from gateway import Gateway
from nameko_reliable.errors import RpcTimeout
from nameko_reliable.rpc import Cluster, ClusterClient
from nameko_reliable.testing.servers import free_port
from nameko_reliable.testing.waiting import wait_for
from tests.factories import a_customer, a_line, a_product
from tests.infrastructure.processes import Processes
from tests.shop import running_shop


class Caller:
    name = "caller"

    cluster = ClusterClient()


@pytest.fixture(scope="module")
def shop(brokers, databases, smtp_server, tmp_path_factory):
    """Processes whose wall clocks a test can set, and a gateway with the right time.

    `processes["orders"]`, `set_clocks(orders="+30s", products="-1h")`, `order(line)` by HTTP, `cluster`.
    """
    folder = tmp_path_factory.mktemp("clocks")
    modules = {name: f"services.{name}" for name in ("orders", "products", "notifications")}
    modules["more_orders"] = modules["orders"]

    def set_clocks(**offsets):
        for name in modules:
            new = folder / f"{name}.new"
            new.write_text(offsets.get(name, "+0"))
            new.rename(folder / name)

    with running_shop(brokers, databases, smtp_server, GATEWAY_PORT=str(free_port())) as running:
        processes = Processes(folder, running.config)
        set_clocks()
        started = {
            name: processes.start(
                module,
                LD_PRELOAD=str(find_faketime() / "libfaketime.so.1"),
                FAKETIME_TIMESTAMP_FILE=str(folder / name),
                FAKETIME_NO_CACHE="1",
                FAKETIME_DONT_FAKE_MONOTONIC="1",
            )
            for name, module in modules.items()
        }
        try:
            running.run(Gateway)
            [client] = [p for p in running.run(Caller).dependencies if isinstance(p, ClusterClient)]
            for queue, replicas in (("rpc-orders", 2), ("rpc-products", 1), ("rpc-notifications", 1)):
                wait_for(lambda queue=queue, replicas=replicas: running.broker.consumers(queue) == replicas, seconds=60)
            yield SimpleNamespace(
                rpc=running.rpc,
                processes=started,
                set_clocks=set_clocks,
                order=lambda line: place_order(running.config, line),
                cluster=Cluster(client, deadline=None, request_id="the test"),
            )
        finally:
            processes.stop()


def place_order(config, line):
    now = int(time.time())
    customer = a_customer()
    claims = {"sub": str(customer["user_id"]), "email": customer["user_email"], "email_verified": False}
    claims |= {"role": "customer", "jti": uuid4().hex}
    token = jwt.encode({**claims, "iat": now, "exp": now + 900}, config["JWT_SECRET"], algorithm="HS256")
    return requests.post(
        f"http://127.0.0.1:{config['GATEWAY_PORT']}/orders",
        json={"items": [line]},
        headers={"Authorization": f"Bearer {token}"},
        timeout=15,
    )


@pytest.fixture
def product(shop):
    shop.set_clocks()
    return shop.rpc.products.create_product(**a_product(stock_quantity=100))


@pytest.mark.parametrize(
    "offsets",
    [
        {"orders": "+30s", "more_orders": "-30s"},
        {"orders": "+1h", "more_orders": "+1h", "products": "-1h", "notifications": "+2h"},
    ],
    ids=["replicas a minute apart", "services hours apart"],
)
def test_orders_are_placed_with_wrong_clocks(shop, product, smtp, offsets):
    shop.set_clocks(**offsets)

    answers = [shop.order(a_line(product)) for _ in range(10)]

    assert [answer.status_code for answer in answers] == [201] * 10
    for answer in answers:
        wait_for(lambda answer=answer: smtp.messages(to=answer.json()["user_email"]))


def test_orders_are_placed_while_clocks_are_set(shop, product):
    with ThreadPoolExecutor(4) as customers:
        calls = [customers.submit(shop.order, a_line(product)) for _ in range(40)]

        for after, orders, products in [(8, "+1h", "-1h"), (16, "-1h", "+1h"), (24, "+5s", "-5s"), (32, "-5s", "+5s")]:
            wait_for(lambda after=after: sum(call.done() for call in calls) >= after)
            shop.set_clocks(orders=orders, products=products)

    assert [call.result().status_code for call in calls] == [201] * 40


def test_a_call_is_not_executed_after_its_deadline(shop, product):
    """The broker drops expired calls, so the call waits in a frozen process."""
    products = shop.processes["products"]
    stock_of = shop.cluster.products.get_product
    shop.set_clocks(products="-1h")
    assert stock_of(product_id=product["id"])["stock_quantity"] == 100
    products.send(signal.SIGSTOP)
    over_at = time.monotonic() + 1
    with pytest.raises(RpcTimeout):
        shop.cluster.within(0.5).products.set_stock(product_id=product["id"], stock_quantity=7)
    wait_for(lambda: time.monotonic() > over_at)

    products.send(signal.SIGCONT)

    wait_for(lambda: "dropped a call of products.set_stock past its deadline" in products.output())
    assert stock_of(product_id=product["id"])["stock_quantity"] == 100
