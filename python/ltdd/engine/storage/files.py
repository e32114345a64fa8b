"""Files written whole or not at all, and checked when read; nothing is ever unpickled.

Every write goes to a temporary file in the same folder, is flushed to the disk and renamed over the
old file. A process killed at any moment leaves the previous content or the new one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ltdd.engine.machine.surroundings import NO_MAPS, can_be_mapped
from ltdd.errors import UserError

# The safetensors writer orders several metadata keys by a per-process random hash, which would make
# the bytes of equal runs differ. One key that holds sorted JSON keeps them equal.
_METADATA_KEY = "ltdd"


def canonical_json(value: Any) -> str:
    """Return JSON text that is equal for equal values: sorted keys, no spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=dataclasses.asdict
    )


def fingerprint(value: Any) -> str:
    """Return the SHA-256 (64 hex digits) of the canonical JSON of ``value``.

    Args:
        value: JSON types, tuples (hashed like lists) and dataclass instances.

    Raises:
        ValueError: a number in ``value`` is NaN or infinite.
        TypeError: ``value`` holds anything else.
    """
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (64 hex digits) of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` atomically and durably.

    Raises:
        UserError: the folder cannot be written or the disk is full; the old file is untouched.
    """
    # The process id keeps two processes apart; remove_leftovers knows the pattern.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes ``path`` when the block ends without an error.

    Args:
        path: a folder that does not exist, or is empty; its parents are made.

    Raises:
        UserError: something is there already, or the folder cannot be written.
    """
    temporary = path.absolute().with_name(f".{path.absolute().name}.{os.getpid()}.tmp")
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"expected a new or an empty folder at {path}, got one that holds data")
        temporary.mkdir(parents=True)
        yield temporary
        for folder in {temporary, *(file.parent for file in temporary.rglob("*"))}:
            _sync_folder(folder)
        os.replace(temporary, path)
        _sync_folder(path.absolute().parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened, and a rename needs no flush of it
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left behind; only safe while no other process writes here."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a UTF-8 text file; atomic, durable and failing as ``write_bytes``."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file, indented and in the order of the keys; fails as ``write_bytes``."""
    text = json.dumps(value, indent=2, allow_nan=False, default=dataclasses.asdict)
    write_text(path, text + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file whose top level is an object.

    Raises:
        UserError: the file is missing, unreadable or something else.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # ValueError includes malformed UTF-8
        raise UserError(f"expected JSON in {path}, got something else ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"expected a JSON object in {path}, got a {type(value).__name__}")
    return value


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Replace a safetensors file; equal content gives equal bytes. Fails as ``write_bytes``.

    Args:
        path: the file.
        tensors: name -> tensor of any shape, dtype, device and memory layout.
        metadata: text stored beside the tensors.
    """
    # clone: safetensors refuses tensors that share storage or are not contiguous
    own = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    write_bytes(path, safetensors.torch.save(own, {_METADATA_KEY: canonical_json(dict(metadata))}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of ``write_tensors`` (or any safetensors file) onto the CPU.

    Returns:
        The tensors by name, and the metadata.

    Raises:
        UserError: the file is missing, truncated or not safetensors.
    """
    try:
        tensors, metadata = _mapped(path) if can_be_mapped(path) else _read_whole(path)
        if _METADATA_KEY in metadata:
            metadata = dict(json.loads(metadata[_METADATA_KEY]))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (safetensors.SafetensorError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"expected a safetensors file in {path}, got {error}") from error
    return tensors, metadata


def _mapped(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except OSError as error:
        if error.errno in NO_MAPS:
            return _read_whole(path)
        raise


def _read_whole(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file without mapping it."""
    content = path.read_bytes()
    tensors = safetensors.torch.load(content)  # checks the header
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return tensors, dict(header.get("__metadata__") or {})


def write_sealed_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Replace a safetensors file that carries a hash of its own content.

    Same arguments and failures as ``write_tensors``; the name ``sha256`` is taken.
    """
    seal = {"sha256": tensors_sha256(tensors, metadata)}
    write_tensors(path, tensors, dict(metadata) | seal)


def read_sealed_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of ``write_sealed_tensors``.

    Returns:
        The tensors by name, and the metadata without the hash.

    Raises:
        UserError: as ``read_tensors``, or the content differs from its hash.
    """
    tensors, metadata = read_tensors(path)
    seal = metadata.pop("sha256", None)
    if seal != tensors_sha256(tensors, metadata):
        raise UserError(f"{path} differs from its SHA-256; it is damaged")
    return tensors, metadata


def tensors_sha256(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Return the SHA-256 (64 hex digits) of tensors by name, with dtypes, shapes and metadata."""
    digest = hashlib.sha256(canonical_json(dict(metadata or {})).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(canonical_json([name, str(tensor.dtype), list(tensor.shape)]).encode())
        # As bytes: numpy does not know every dtype. A scalar has no bytes to view, a row does.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
