"""Whether there is a Prefect server, and how to start one."""

from __future__ import annotations

from stages.errors import WinnowError
from stages.workflow.store import without_password

_SECONDS = 30.0  # where none listens it is known at once; a busy machine answers late


def check_server(*, needed: bool) -> str | None:
    """The address of the Prefect server, which was seen to answer.

    Parameters
    ----------
    needed : without one, raise; else return None (a one-off run starts a temporary server)

    Raises
    ------
    WinnowError
        Where the server that the settings name does not answer, or none is named but needed.
    """
    import httpx
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if not url:
        if not needed:
            return None
        raise WinnowError(
            "a schedule needs a Prefect server: start one with `make ui` (or `prefect server start`), then "
            "set PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    try:
        httpx.get(f"{url.rstrip('/')}/health", timeout=_SECONDS).raise_for_status()
    except httpx.HTTPError as error:
        detail = str(error) or type(error).__name__
        raise WinnowError(
            f"the Prefect server at {without_password(url)} does not answer ({detail}): "
            "start one with `make ui`, or unset PREFECT_API_URL"
        ) from error
    return url
