import jwt
import pytest

from contracts.types import InvalidInput, NotAllowed, Taken
from contracts.users import InvalidCredentials, LastAdmin, UserNotFound
from services.users import Users
from tests.factories import an_account
from tests.shop import refusal_of

from .conftest import log_in


@pytest.fixture
def account(shop):
    account = an_account()
    return {**account, **shop.rpc.users.register(**account)}


def test_a_new_role_is_valid_from_the_next_login(shop, account):
    user = shop.rpc.users.set_role(email=account["email"].upper(), role="admin")

    assert user["role"] == "admin"
    token = log_in(shop, account)["access_token"]
    assert jwt.decode(token, shop.config["JWT_SECRET"], algorithms=["HS256"])["role"] == "admin"


@pytest.mark.parametrize("role", ("root", "", None, 5, ["admin"], {}))
def test_an_unknown_role_is_refused(shop, account, role):
    with pytest.raises(InvalidInput):
        shop.rpc.users.set_role(email=account["email"], role=role)
    with pytest.raises(InvalidInput):
        shop.rpc.users.update_user(user_id=account["id"], role=role)


def test_a_letter_that_folds_to_ascii_makes_no_other_account_an_admin(shop):
    account = an_account()
    account["email"] = "kelvin-" + account["email"]
    shop.rpc.users.register(**account)

    with pytest.raises(UserNotFound):
        shop.rpc.users.set_role(email="\N{KELVIN SIGN}" + account["email"][1:], role="admin")


@pytest.mark.parametrize("email", ("nobody@forage.example", "no address", None, 5))
def test_an_unknown_address_gets_no_role(shop, email):
    with pytest.raises(UserNotFound):
        shop.rpc.users.set_role(email=email, role="admin")
    with pytest.raises(UserNotFound):
        shop.rpc.users.update_user(user_id=2**60, role="admin")


def test_a_redelivered_change_of_role_is_made_once(shop, account):
    first, second = shop.call_twice("users", "set_role", email=account["email"], role="admin")

    assert first == second
    assert first["role"] == "admin"


def test_a_disabled_account_cannot_log_in_until_it_is_enabled(shop, account):
    assert shop.rpc.users.update_user(user_id=account["id"], is_active=False)["is_active"] is False
    with pytest.raises(InvalidCredentials):
        log_in(shop, account)

    assert shop.rpc.users.update_user(user_id=account["id"], is_active=True)["is_active"] is True
    assert log_in(shop, account)


def test_a_change_without_effect_keeps_the_sessions(shop, account):
    token = log_in(shop, account)["refresh_token"]

    unchanged = shop.rpc.users.update_user(user_id=account["id"], role="customer", is_active=True)

    assert (
        unchanged == shop.rpc.users.get_user(user_id=account["id"]) == shop.rpc.users.update_user(user_id=account["id"])
    )
    assert shop.rpc.users.refresh(refresh_token=token)


@pytest.mark.parametrize("changes", ({"is_active": "no"}, {"is_active": 0}, {"email": "x@forage.example"}, {"id": 3}))
def test_changes_of_other_fields_are_refused(shop, account, changes):
    with pytest.raises(InvalidInput):
        shop.rpc.users.update_user(user_id=account["id"], **changes)


# The last admin


@pytest.fixture
def two_admins(own_shop):
    own_shop.run(Users)
    admins = [own_shop.rpc.users.register(**an_account()) for _ in range(2)]
    return [own_shop.rpc.users.set_role(email=admin["email"], role="admin") for admin in admins]


@pytest.mark.parametrize("change", ({"role": "customer"}, {"is_active": False}))
def test_the_last_admin_cannot_be_removed(own_shop, two_admins, change):
    first, last = two_admins
    own_shop.rpc.users.update_user(user_id=first["id"], **change)

    with pytest.raises(LastAdmin):
        own_shop.rpc.users.update_user(user_id=last["id"], **change)

    assert own_shop.rpc.users.get_user(user_id=last["id"]) == last


def test_two_admins_cannot_remove_each_other_concurrently(own_shop, two_admins):
    calls = [own_shop.rpc.users.update_user.call_async(user_id=admin["id"], role="customer") for admin in two_admins]

    refusals = [type(refusal_of(call)) for call in calls]

    assert sorted(refusal.__name__ for refusal in refusals) == ["LastAdmin", "NoneType"]


@pytest.mark.parametrize("end", ({"role": "customer"}, {"is_active": False}))
def test_a_former_admin_cannot_change_rights(own_shop, two_admins, end):
    """Their access token still has the role for a while."""
    first, second = two_admins
    own_shop.rpc.users.update_user(user_id=first["id"], admin_id=second["id"], **end)

    for user in (first, own_shop.rpc.users.register(**an_account())):
        with pytest.raises(NotAllowed):
            own_shop.rpc.users.update_user(user_id=user["id"], admin_id=first["id"], role="admin", is_active=True)

    assert own_shop.rpc.users.list_users(role="admin")["total"] == (2 if "is_active" in end else 1)


# Listing


@pytest.fixture
def four_users(own_shop):
    own_shop.run(Users)
    names = ("Ada", "Boris", "Cy_%", "Dee")
    accounts = [an_account(username=name, email=f"{name[:3].lower()}@forage.example") for name in names[:2]]
    accounts += [an_account(username=names[2]), an_account(username=names[3])]
    return [own_shop.rpc.users.register(**account) for account in accounts]


def test_users_are_listed_by_id_in_pages(own_shop, four_users):
    page = own_shop.rpc.users.list_users(limit=2, offset=1)

    assert page == {"items": four_users[1:3], "total": 4, "limit": 2, "offset": 1}
    assert own_shop.rpc.users.list_users()["items"] == four_users
    assert own_shop.rpc.users.list_users(offset=10)["items"] == []


@pytest.mark.parametrize(
    "q, found",
    (
        ("ADA", {"Ada"}),
        ("bor@forage.ex", {"Boris"}),
        ("_%", {"Cy_%"}),
        ("nobody", set()),
        ("", {"Ada", "Boris", "Cy_%", "Dee"}),
    ),
)
def test_users_are_found_by_part_of_their_name_or_address(own_shop, four_users, q, found):
    page = own_shop.rpc.users.list_users(q=q)

    assert {user["username"] for user in page["items"]} == found
    assert page["total"] == len(found)


def test_users_are_found_by_role(own_shop, four_users):
    admin = own_shop.rpc.users.set_role(email=four_users[0]["email"], role="admin")

    assert own_shop.rpc.users.list_users(role="admin")["items"] == [admin]
    assert own_shop.rpc.users.list_users(role="customer")["items"] == four_users[1:]


@pytest.mark.parametrize("query", ({"limit": 0}, {"limit": 101}, {"offset": -1}, {"role": "root"}, {"sort": "id"}))
def test_a_query_out_of_bounds_is_refused(shop, query):
    with pytest.raises(InvalidInput):
        shop.rpc.users.list_users(**query)


# The name


def test_a_name_can_be_changed(shop, account):
    name = f"{account['username']} the Great"

    user = shop.rpc.users.update_profile(user_id=account["id"], username=f" {name} ")

    assert user == {**shop.rpc.users.get_user(user_id=account["id"]), "username": name}


def test_the_name_of_another_user_cannot_be_taken(shop, account):
    other = shop.rpc.users.register(**an_account())

    with pytest.raises(Taken) as refusal:
        shop.rpc.users.update_profile(user_id=account["id"], username=other["username"].upper())

    assert refusal.value.field == "username"
    assert shop.rpc.users.update_profile(user_id=account["id"], username=account["username"].upper())


@pytest.mark.parametrize("username", ("", "  ", "x" * 51, "two\nlines", None, 5))
def test_a_name_out_of_bounds_is_refused(shop, account, username):
    with pytest.raises(InvalidInput):
        shop.rpc.users.update_profile(user_id=account["id"], username=username)
