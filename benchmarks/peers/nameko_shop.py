"""A shop on stock Nameko, as its documentation would write it: without outbox, idempotency, reservation and mail.

`nameko run` starts a class of it. POST /orders {"user_id": 1, "items": [{"product_id": 1, "quantity": 1}]}
"""

import json
from datetime import UTC, datetime
from decimal import Decimal

from nameko.events import EventDispatcher
from nameko.rpc import RpcProxy, rpc
from nameko.web.handlers import http
from nameko_sqlalchemy import Database
from sqlalchemy import ForeignKey, Numeric
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    pass


class Product(Base):
    __tablename__ = "shop_products"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    price: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    stock_quantity: Mapped[int]


class Order(Base):
    __tablename__ = "shop_orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(index=True)
    status: Mapped[str] = mapped_column(default="pending")
    total_amount: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    created_at: Mapped[datetime]
    items: Mapped[list["OrderItem"]] = relationship(order_by="OrderItem.id")


class OrderItem(Base):
    __tablename__ = "shop_order_items"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("shop_orders.id"), index=True)
    product_id: Mapped[int]
    product_name: Mapped[str]
    product_price: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    quantity: Mapped[int]


class Products:
    name = "plain_products"

    db = Database(Base)

    @rpc
    def take_stock(self, items):
        with self.db.get_session() as session:
            return [self._take(session, item["product_id"], item["quantity"]) for item in items]

    def _take(self, session, product_id, quantity):
        product = session.get(Product, product_id, with_for_update=True)
        if product.stock_quantity < quantity:
            raise ValueError(f"Only {product.stock_quantity} of product {product_id} are left.")
        product.stock_quantity -= quantity
        return {"product_id": product_id, "quantity": quantity, "name": product.name, "price": str(product.price)}


class Orders:
    name = "plain_orders"

    db = Database(Base)
    products = RpcProxy("plain_products")
    dispatch = EventDispatcher()

    @rpc
    def create_order(self, user_id, items):
        lines = self.products.take_stock(sorted(items, key=lambda item: item["product_id"]))
        with self.db.get_session() as session:
            order = Order(
                user_id=user_id,
                total_amount=sum(Decimal(line["price"]) * line["quantity"] for line in lines),
                created_at=datetime.now(UTC).replace(tzinfo=None),
                items=[
                    OrderItem(
                        product_id=line["product_id"],
                        product_name=line["name"],
                        product_price=Decimal(line["price"]),
                        quantity=line["quantity"],
                    )
                    for line in lines
                ],
            )
            session.add(order)
            session.flush()
            view = {"id": order.id, "status": order.status, "total_amount": str(order.total_amount), "items": lines}
        self.dispatch("order_created", view)
        return view


class Gateway:
    name = "plain_gateway"

    orders = RpcProxy("plain_orders")

    @http("POST", "/orders")
    def create_order(self, request):
        order = json.loads(request.get_data(as_text=True))
        view = self.orders.create_order(order["user_id"], order["items"])
        return 201, {"Content-Type": "application/json"}, json.dumps(view)
