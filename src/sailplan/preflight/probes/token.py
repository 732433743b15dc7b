"""Asks the hub whose token this is: `python -m sailplan.preflight.probes.token`.

The token comes from the environment or the hub's own file, as training would find it.
"""

from __future__ import annotations

from sailplan.preflight.children import answer


def main() -> None:
    """Answers with the owner's name; without one, with whether the hub refused the token."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    name, refused = "", False
    try:
        name = str(HfApi().whoami()["name"])
    except HfHubHTTPError as error:
        refused = error.response is not None and error.response.status_code in (401, 403)
    except Exception:  # of many kinds: no network
        name = ""
    answer(name=name, refused=refused)


if __name__ == "__main__":
    main()
