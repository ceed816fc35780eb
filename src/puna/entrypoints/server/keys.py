"""API keys: who a request comes from."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import HTTPConnection

from puna.entrypoints.server.problems import Refusal
from puna.errors import InvalidRequestError

__all__ = ["ApiKeys", "Tenant", "read_keys"]

_SHORTEST = 8


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose request it is.

    Attributes:
        name: The key's name; never the key.
        cache_salt: Separates what is cached for it from others; None where there is only one.
    """

    name: str
    cache_salt: str | None = None

    def salt(self, given: str | None) -> str | None:
        """The cache salt of a request that may state one."""
        if self.cache_salt is None or given is None:
            return self.cache_salt or given
        return f"{self.cache_salt}:{given}"


class ApiKeys:
    """Tells tenants by their keys. Without keys everybody is the same one.

    Args:
        keys: Name -> key.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._tenants = [(_digest(key), Tenant(name, name if len(keys) > 1 else None)) for name, key in keys.items()]

    @property
    def names(self) -> list[str]:
        """The names of all tenants."""
        return [tenant.name for _, tenant in self._tenants] or [_ANYBODY.name]

    def tenant(self, name: str) -> Tenant:
        """A tenant by name.

        Raises:
            Refusal: there is none, any more; 401.
        """
        known = [tenant for _, tenant in self._tenants] or [_ANYBODY]
        for tenant in known:
            if tenant.name == name:
                return tenant
        raise Refusal(401, "invalid_api_key", f"the key {name!r} is not known any more")

    def identify(self, connection: HTTPConnection) -> Tenant:
        """Who a request comes from, by `Authorization: Bearer` or `x-api-key`.

        Raises:
            Refusal: the key is missing or wrong.
        """
        if not self._tenants:
            return _ANYBODY
        scheme, _, token = connection.headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else connection.headers.get("x-api-key", "")
        if not given:
            raise Refusal(401, "missing_api_key", "an API key is needed: Authorization: Bearer KEY, or x-api-key: KEY")
        digest, found = _digest(given), None
        for expected, tenant in self._tenants:  # all of them: how long it takes tells nothing
            if hmac.compare_digest(digest, expected):
                found = tenant
        if found is None:
            raise Refusal(401, "invalid_api_key", "the API key is not known here")
        return found


_ANYBODY = Tenant("default")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys(given: tuple[str, ...], file: Path | None) -> dict[str, str]:
    """Keys by name, from `--api-key` (or its environment variable) and a file.

    A line of the file is `name: key` or a key alone; blank lines and those that begin with `#` are left out. Keys
    without a name are called `key-1`, `key-2`, ...

    Raises:
        InvalidRequestError: the file cannot be read, a key is short, or a name or key occurs twice.
    """
    entries: list[tuple[str | None, str]] = [(None, key) for key in given]
    if file is not None:
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequestError(f"{file} cannot be read: {error}", param="api_key_file") from error
        for line in map(str.strip, lines):
            if line and not line.startswith("#"):
                name, colon, key = line.partition(":")
                entries.append((name.strip(), key.strip()) if colon else (None, line))
        if not entries:
            raise InvalidRequestError(f"there is no key in {file}", param="api_key_file")
    keys: dict[str, str] = {}
    for number, (stated, key) in enumerate(entries, 1):
        name = stated or f"key-{number}"
        if len(key) < _SHORTEST:
            raise InvalidRequestError(f"the key {name} has fewer than {_SHORTEST} characters", param="api_key")
        if name in keys or key in keys.values():
            raise InvalidRequestError(f"the key {name} or its name is there twice", param="api_key")
        keys[name] = key
    return keys
