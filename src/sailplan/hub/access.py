"""Whether what is trained may be pushed to the hub; told before training, not after it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from sailplan.errors import RunFileError
from sailplan.hub.repository import is_offline


def check_push(environment: Mapping[str, str] = os.environ) -> None:
    """Refuses `push_to_hub` where the hub is switched off, or would not know who pushes.

    Args:
        environment: The variables of the ranks.

    Raises:
        RunFileError: The hub is switched off, there is no token, or the hub does not take it.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    ways = "set HF_TOKEN, run `hf auth login`, or drop push_to_hub"
    if is_offline(environment):
        got = "push_to_hub while the hub is switched off (HF_HUB_OFFLINE)"
        raise RunFileError(got, todo="drop one of the two, and push when the run has ended")
    token = environment.get("HF_TOKEN") or get_token()
    if not token:
        raise RunFileError("push_to_hub without a token", todo=ways)
    try:
        HfApi().whoami(token=token)
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise RunFileError("push_to_hub with a token that the hub refuses", todo=ways) from None
    except Exception:  # of many kinds: no network
        got = "push_to_hub, and the hub does not answer"
        raise RunFileError(got, todo="check the network, or drop push_to_hub") from None
