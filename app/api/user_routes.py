"""Routes of users and groups, for administrators."""

import asyncio

from fastapi import APIRouter, Response

from app.api.account_schemas import GroupIn, GroupOut, GroupPatch, UserIn, UserOut, UserPatch
from app.api.convert import out
from app.api.deps import AccountsDep, RunsDep
from app.api.errors import CREATED, NO_CONTENT

router = APIRouter(prefix="/api", tags=["accounts"])


@router.get("/users")
def list_users(accounts: AccountsDep) -> list[UserOut]:
    """All users, by name."""
    return [out(UserOut, user) for user in accounts.users.list()]


@router.post("/users", status_code=CREATED)
def create_user(new: UserIn, accounts: AccountsDep) -> UserOut:
    """A new user; names are unique without case."""
    return out(UserOut, accounts.add(new.name, new.password.get_secret_value(), new.role))


@router.patch("/users/{user_id}")
def change_user(user_id: str, patch: UserPatch, accounts: AccountsDep) -> UserOut:
    """Change role or password, or shut a user out; the last active administrator stays one."""
    password = patch.password.get_secret_value() if patch.password else None
    return out(UserOut, accounts.change(user_id, patch.role, patch.is_active, password))


@router.delete("/users/{user_id}", status_code=NO_CONTENT, response_class=Response)
async def delete_user(user_id: str, accounts: AccountsDep, runs: RunsDep) -> None:
    """Delete a user with chats and keys; knowledge bases stay, the administrators'."""
    await runs.stop([run for run in runs.unfinished() if run.owner_id == user_id])
    await asyncio.to_thread(accounts.users.delete, user_id)


@router.get("/groups")
def list_groups(accounts: AccountsDep) -> list[GroupOut]:
    """All groups, by name."""
    return [out(GroupOut, group) for group in accounts.groups.list()]


@router.post("/groups", status_code=CREATED)
def create_group(new: GroupIn, accounts: AccountsDep) -> GroupOut:
    """A new group without members."""
    return out(GroupOut, accounts.groups.create(new.name))


@router.patch("/groups/{group_id}")
def change_group(group_id: str, patch: GroupPatch, accounts: AccountsDep) -> GroupOut:
    """Rename a group, or replace its members."""
    return out(GroupOut, accounts.groups.change(group_id, patch.name, patch.user_ids))


@router.delete("/groups/{group_id}", status_code=NO_CONTENT, response_class=Response)
def delete_group(group_id: str, accounts: AccountsDep) -> None:
    """Delete a group, and what was shared with it; its members stay."""
    accounts.groups.delete(group_id)
