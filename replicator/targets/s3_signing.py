"""Requests to S3 that obstore does not know (Object Lock), signed as S3 wants it (Signature Version 4). No I/O.

Layout of a signature: the request in its canonical form (method, path, query, headers, SHA-256 of the body) is hashed;
time, scope (day/region/s3/aws4_request) and that hash are signed by HMAC with a key derived from secret and scope.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import quote, urlsplit

_ALGORITHM: Final = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class S3Endpoint:
    """A bucket and the credentials for it. `url` has no slash at its end; `key` is "" if requests are not signed."""

    url: str
    region: str
    key: str
    secret: str
    token: str = ""

    @staticmethod
    def of(config: Mapping[str, object], environment: Mapping[str, str] = os.environ) -> S3Endpoint | None:
        """From obstore's configuration, and where that is silent from the environment, as obstore does it itself. None
        if there is no key in either: one that a machine's role gives is known to obstore alone."""

        def setting(name: str, *variables: str) -> str:
            found = config.get(name) or config.get(f"aws_{name}")
            return str(found) if found else next((environment[each] for each in variables if environment.get(each)), "")

        bucket, region = str(config.get("bucket", "")), setting("region", "AWS_REGION", "AWS_DEFAULT_REGION")
        region = region or "us-east-1"
        endpoint = setting("endpoint", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
        url = (endpoint or f"https://s3.{region}.amazonaws.com").rstrip("/")
        if str(config.get("virtual_hosted_style_request", "false")).lower() != "true" or not endpoint:
            url = f"{url}/{bucket}"
        if str(config.get("skip_signature", "false")).lower() == "true":
            return S3Endpoint(url, region, "", "")
        key = setting("access_key_id", "AWS_ACCESS_KEY_ID")
        secret = setting("secret_access_key", "AWS_SECRET_ACCESS_KEY")
        if not key or not secret:
            return None
        return S3Endpoint(url, region, key, secret, setting("session_token", "AWS_SESSION_TOKEN"))


def encoded(key: str) -> str:
    """An object's key in a URL."""
    return quote(key, safe="/-_.~")


def query_of(query: Mapping[str, str]) -> str:
    return "&".join(f"{quote(name, safe='-_.~')}={quote(query[name], safe='-_.~')}" for name in sorted(query))


def headers_of(
    place: S3Endpoint,
    method: str,
    path: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    body: bytes,
    at: datetime,
) -> dict[str, str]:
    """The headers of a request to `path` (encoded, below `place.url`), at `at` (UTC), with the signature."""
    parts = urlsplit(place.url)
    hashed, stamp = hashlib.sha256(body).hexdigest(), at.strftime("%Y%m%dT%H%M%SZ")
    signed = {name.lower(): value.strip() for name, value in headers.items()}
    signed |= {"host": parts.netloc, "x-amz-content-sha256": hashed, "x-amz-date": stamp}
    if place.token:
        signed["x-amz-security-token"] = place.token
    if not place.key:
        return signed
    names = sorted(signed)
    listed = ";".join(names)
    lines = [method, f"{parts.path}{path}" or "/", query_of(query), *(f"{name}:{signed[name]}" for name in names), ""]
    canonical = "\n".join([*lines, listed, hashed])
    scope = f"{stamp[:8]}/{place.region}/s3/aws4_request"
    to_sign = "\n".join([_ALGORITHM, stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{place.secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    credential = f"Credential={place.key}/{scope},SignedHeaders={listed},Signature={signature}"
    signed["authorization"] = f"{_ALGORITHM} {credential}"
    return signed
