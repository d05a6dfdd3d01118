"""Routes of coming in and going, and of what is one's own: password and keys."""

import asyncio
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from app.accounts import Accounts
from app.api.account_schemas import (
    AuthOut,
    KeyIn,
    KeyOut,
    LoginIn,
    NewKeyOut,
    PasswordIn,
    SetupIn,
    UserOut,
)
from app.api.convert import out
from app.api.deps import AccessDep, AccountsDep
from app.api.errors import CREATED, NO_CONTENT
from app.api.guards import SESSION_COOKIE, bearer_token, recognise
from app.domain import User
from app.errors import Forbidden

# open to all: nobody can log in who would have to be logged in for it
entrance = APIRouter(prefix="/api", tags=["accounts"])
own = APIRouter(prefix="/api/me", tags=["accounts"])


@entrance.get("/auth")
async def get_auth(request: Request) -> AuthOut:
    """Whether one logs in here, and who the caller is."""
    accounts: Accounts | None = request.app.state.accounts
    if accounts is None:
        return AuthOut(mode="off", needs_setup=False, user=None)
    user = await recognise(request)
    needs_setup = user is None and await asyncio.to_thread(accounts.users.count) == 0
    return AuthOut(mode="users", needs_setup=needs_setup, user=out(UserOut, user) if user else None)


@entrance.post("/setup", status_code=CREATED)
def set_up(wanted: SetupIn, request: Request, response: Response, accounts: AccountsDep) -> UserOut:
    """Make the first account, an administrator's, with the code that Folio printed."""
    password = wanted.password.get_secret_value()
    user, token = accounts.set_up(wanted.code, wanted.name, password, _address(request))
    _set_cookie(request, response, accounts, token)
    return out(UserOut, user)


@entrance.post("/login")
def log_in(wanted: LoginIn, request: Request, response: Response, accounts: AccountsDep) -> UserOut:
    """Come in by name and password: a session in a cookie."""
    password = wanted.password.get_secret_value()
    user, token = accounts.log_in(wanted.name, password, _address(request))
    if old := request.cookies.get(SESSION_COOKIE):
        accounts.log_out(old)
    _set_cookie(request, response, accounts, token)
    return out(UserOut, user)


@entrance.post("/logout", status_code=NO_CONTENT, response_class=Response)
def log_out(request: Request, accounts: AccountsDep) -> Response:
    """End the session; without one nothing happens."""
    if token := request.cookies.get(SESSION_COOKIE):
        accounts.log_out(token)
    response = Response(status_code=NO_CONTENT)
    response.delete_cookie(SESSION_COOKIE, path="/", httponly=True, samesite="lax")
    return response


def get_me(accounts: AccountsDep, access: AccessDep) -> User:
    """The user who asks; Forbidden for the holder of FOLIO_API_KEY, who is nobody's account."""
    if not access.user_id:
        raise Forbidden("FOLIO_API_KEY is no user's: log in, or send a key of yours")
    return accounts.users.get(access.user_id)


MeDep = Annotated[User, Depends(get_me)]


@own.patch("")
def change_password(
    wanted: PasswordIn, request: Request, me: MeDep, accounts: AccountsDep
) -> UserOut:
    """Change one's own password; all other sessions end."""
    user = accounts.change_password(
        me,
        wanted.current_password.get_secret_value(),
        wanted.new_password.get_secret_value(),
        request.cookies.get(SESSION_COOKIE),
        _address(request),
    )
    return out(UserOut, user)


@own.get("/keys")
def list_keys(me: MeDep, accounts: AccountsDep) -> list[KeyOut]:
    """One's own keys for programs."""
    return [out(KeyOut, key) for key in accounts.keys(me.id)]


@own.post("/keys", status_code=CREATED)
def create_key(new: KeyIn, request: Request, me: MeDep, accounts: AccountsDep) -> NewKeyOut:
    """A new key; it is shown this once. Keys make no keys, or they would never expire."""
    if bearer_token(request):
        raise Forbidden("a key cannot make another: log in with your password")
    lifetime = timedelta(days=new.expires_in_days) if new.expires_in_days else None
    made, key = accounts.make_key(me.id, new.name, lifetime)
    return NewKeyOut(**out(KeyOut, made).model_dump(), key=key)


@own.delete("/keys/{key_id}", status_code=NO_CONTENT, response_class=Response)
def delete_key(key_id: str, me: MeDep, accounts: AccountsDep) -> None:
    """Take a key back: it is refused from now on."""
    accounts.delete_key(me.id, key_id)


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _set_cookie(request: Request, response: Response, accounts: Accounts, token: str) -> None:
    """The cookie that no script reads, and no other site's form sends."""
    forwarded = request.headers.get("x-forwarded-proto", "").partition(",")[0].strip()
    response.set_cookie(
        SESSION_COOKIE,
        token,
        max_age=int(accounts.session_lifetime.total_seconds()),
        path="/",
        httponly=True,
        samesite="lax",
        secure="https" in (request.url.scheme, forwarded.lower()),
    )
