"""Ed25519 signatures: this installation's own key, and the keys of others that a person chose to trust.

Engine files are executable code. A record that carries this installation's signature was written by it; a bundle
from another machine is taken in only from a key whose fingerprint a person compared.
"""

import base64
import hashlib
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dropgen_rt.atomic import atomic_path
from dropgen_rt.errors import EngineError
from dropgen_rt.store import home, lock, make_folder, write_text

KEY_BYTES = 32


def _private() -> Ed25519PrivateKey:
    """This installation's key, made on first use, readable by its owner only."""
    path = home() / "keys" / "own.key"
    if not path.is_file():
        with lock():
            if not path.is_file():
                make_folder(path.parent)
                with atomic_path(path) as temporary:
                    temporary.chmod(0o600)
                    temporary.write_bytes(Ed25519PrivateKey.generate().private_bytes_raw())
    return _read(path)


def _read(path: Path) -> Ed25519PrivateKey:
    content = path.read_bytes()
    if len(content) != KEY_BYTES or path.stat().st_mode & 0o077:
        raise EngineError(f"{path}: not a key that only its owner can read; remove it, and build engines again")
    return Ed25519PrivateKey.from_private_bytes(content)


def sign(content: bytes) -> str:
    """This installation's signature, as text."""
    return base64.b64encode(_private().sign(content)).decode("ascii")


def own_public_key() -> bytes:
    return _private().public_key().public_bytes_raw()


def is_own(content: bytes, signature: str) -> bool:
    """Whether this installation signed ``content``."""
    return is_signed(content, signature, own_public_key())


def is_signed(content: bytes, signature: str, public_key: bytes) -> bool:
    """Whether the owner of ``public_key`` (32 bytes) signed ``content``."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(base64.b64decode(signature, validate=True), content)
    except (InvalidSignature, ValueError):
        return False
    return True


def fingerprint(public_key: bytes) -> str:
    """Six groups of four hexadecimal digits, for two people to compare."""
    digits = hashlib.sha256(public_key).hexdigest()[:24]
    return "-".join(digits[place : place + 4] for place in range(0, 24, 4))


def is_trusted(public_key: bytes) -> bool:
    return public_key == own_public_key() or _trusted_path(public_key).is_file()


def trust(public_key: bytes) -> None:
    """Take bundles of this key from now on."""
    write_text(_trusted_path(public_key), base64.b64encode(public_key).decode("ascii") + "\n")


def _trusted_path(public_key: bytes) -> Path:
    return home() / "keys" / f"{hashlib.sha256(public_key).hexdigest()}.trusted"


def write_signed(path: Path, content: bytes) -> None:
    """Keep bytes behind this installation's signature. Raises OutputError."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(sign(content).encode("ascii") + b"\n" + content)


def read_signed(path: Path) -> bytes:
    """What ``write_signed`` kept there; b"" if there is nothing, or this installation did not write it."""
    if not path.is_file():
        return b""
    signature, _, content = path.read_bytes().partition(b"\n")
    return content if signature.isascii() and is_own(content, signature.decode("ascii")) else b""
