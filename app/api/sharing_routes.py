"""Routes of sharing: with whom a knowledge base is shared, and who there is to share with."""

from fastapi import APIRouter

from app.api.account_schemas import AccessOut, GrantOut, PrincipalOut, PrincipalsOut
from app.api.convert import out
from app.api.deps import AccountsDep, PermittedDep
from app.domain import Grant
from app.errors import Forbidden

router = APIRouter(prefix="/api", tags=["accounts"])


@router.get("/principals")
def list_principals(accounts: AccountsDep) -> PrincipalsOut:
    """The names of active users and of groups, to share with."""
    return PrincipalsOut(
        users=[out(PrincipalOut, user) for user in accounts.users.list() if user.is_active],
        groups=[out(PrincipalOut, group) for group in accounts.groups.list()],
    )


@router.get("/collections/{collection_id}/access")
def get_collection_access(
    collection_id: str, permitted: PermittedDep, accounts: AccountsDep
) -> AccessOut:
    """Whose a knowledge base is and with whom it is shared; for its owner and administrators."""
    collection = permitted.collection(collection_id, "owner")
    grants = accounts.grants.of(collection_id)
    return AccessOut(
        owner_id=collection.owner_id, grants=[out(GrantOut, grant) for grant in grants]
    )


@router.put("/collections/{collection_id}/access")
def share_collection(
    collection_id: str, wanted: AccessOut, permitted: PermittedDep, accounts: AccountsDep
) -> AccessOut:
    """Replace owner and grants; only an administrator takes a knowledge base from everyone."""
    permitted.collection(collection_id, "owner")
    if wanted.owner_id is None and not permitted.access.is_admin:
        raise Forbidden("name an owner: only administrators give a knowledge base to none")
    grants = [Grant(grant.kind, grant.id, grant.role) for grant in wanted.grants]
    accounts.grants.share(collection_id, wanted.owner_id, grants)
    return wanted
