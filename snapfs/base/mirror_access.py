"""How to get into a mirror: what readers and pushers need in common."""

from __future__ import annotations

import ssl

import msgspec

from snapfs.base.errors import UserError

_TOKEN_BYTES = 4096


class MirrorAccess(msgspec.Struct, frozen=True, omit_defaults=True):
    """Files: one with the token; of TLS the authorities to trust instead of the system's, and a certificate of our own.

    None: not used.
    """

    token_file: str | None = None
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None

    def token(self) -> str:
        """Empty if there is none. UserError if it cannot be read."""
        if self.token_file is None:
            return ""
        try:
            with open(self.token_file, encoding="utf-8") as file:
                return file.read(_TOKEN_BYTES).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{self.token_file}: the token cannot be read: {error}; name a file that you may read"
            ) from None

    def tls(self) -> ssl.SSLContext:
        """The TLS context for connections to the mirror. Raises UserError if a file of it cannot be read."""
        try:
            context = ssl.create_default_context(cafile=self.ca)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except OSError as error:
            raise UserError(f"TLS: {self.ca or ''} {self.certificate or ''} cannot be used: {error}") from None
        return context
