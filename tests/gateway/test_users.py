from uuid import uuid4

import pytest

from .conftest import PASSWORD, problem


@pytest.fixture
def account():
    name = f"ada-{uuid4().hex[:8]}"
    return {"email": f"{name}@forage.example", "username": name, "password": PASSWORD}


def test_a_new_customer_registers_logs_in_and_sees_their_account(anonymous, account):
    registered = anonymous.post("/users/register", account | {"email": account["email"].upper()})

    login = anonymous.post("/users/login", {"email": account["email"], "password": PASSWORD})
    me = anonymous.get("/users/me", headers={"Authorization": f"Bearer {login.json()['access_token']}"})

    assert registered.status_code == 201
    assert set(registered.json()) == {"id", "email", "username", "role", "is_active", "created_at", "updated_at"}
    assert registered.json()["email"] == account["email"]
    assert login.status_code == 200
    assert login.json().keys() == {"access_token", "token_type", "expires_in"}
    assert (login.json()["token_type"], login.json()["expires_in"]) == ("bearer", 900)
    assert login.headers["Cache-Control"] == "no-store"
    assert me.json() == registered.json()


@pytest.mark.parametrize("taken", ["email", "username"])
def test_a_taken_address_or_name_is_refused_in_any_case(anonymous, account, taken):
    anonymous.post("/users/register", account)
    other = {"email": "x" + account["email"], "username": "x" + account["username"], "password": PASSWORD}

    refusal = anonymous.post("/users/register", other | {taken: account[taken].upper()})

    assert refusal.status_code == 409
    assert problem(refusal)["type"] == "taken"
    assert problem(refusal)["field"] == taken


@pytest.mark.parametrize("email", (".{}@b.example", "{}..b@b.example", "{}@b.--", "{}@1.2.3.44"))
def test_registration_refuses_an_address_that_cannot_receive_mail_and_older_accounts_still_work(
    shop, anonymous, account, new_product, email
):
    email = email.format(account["username"])
    refusal = anonymous.post("/users/register", account | {"email": email})
    anonymous.post("/users/register", account)
    shop.sql("users", "UPDATE users SET email = %s WHERE email = %s", email, account["email"])

    login = anonymous.post("/users/login", {"email": email, "password": PASSWORD})
    order = anonymous.post(
        "/orders",
        {"items": [{"product_id": new_product()["id"], "quantity": 1}]},
        headers={"Authorization": f"Bearer {login.json()['access_token']}"},
    )
    reset = anonymous.post("/users/password-reset", {"email": email})

    assert refusal.status_code == 422
    assert problem(refusal)["errors"]["email"][0].startswith("Not a valid email address.")
    assert (login.status_code, order.status_code, reset.status_code) == (200, 201, 202)


def test_every_cause_of_a_refused_login_looks_the_same(anonymous, account):
    anonymous.post("/users/register", account)

    wrong_password = anonymous.post("/users/login", {"email": account["email"], "password": "wrong password"})
    unknown_address = anonymous.post("/users/login", {"email": "nobody@forage.example", "password": PASSWORD})
    no_address = anonymous.post("/users/login", {"email": "not an address", "password": PASSWORD})

    refusals = [problem(answer) for answer in (wrong_password, unknown_address, no_address)]
    for refusal in refusals:
        refusal.pop("request_id")
    assert refusals[0] == refusals[1] == refusals[2]
    assert refusals[0]["type"] == "invalid-credentials"
    assert wrong_password.status_code == 401
    assert wrong_password.headers["WWW-Authenticate"] == "Bearer"


def test_registration_errors_are_reported_by_field(anonymous):
    refusal = anonymous.post("/users/register", {"email": "nope", "password": "short", "role": "admin"})

    assert refusal.status_code == 422
    assert problem(refusal)["type"] == "invalid-input"
    assert problem(refusal)["errors"].keys() == {"email", "username", "password", "role"}


def test_the_token_of_a_deleted_account_is_refused(anonymous, new_token):
    answer = anonymous.get("/users/me", headers={"Authorization": f"Bearer {new_token(sub='999999999')}"})

    assert answer.status_code == 401
    assert problem(answer)["type"] == "unauthenticated"
