"""States of the layers that a training never changes, computed once and kept: most of a step's work where most layers
are frozen, and the same for every system, seed and epoch that reads the same tokens.

Suffixes: B pairs, L tokens, D encoder width.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import weakref
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BertModel

from relevance.errors import RunError

INDEX = ".index.npz"
STATES = ".states"
_KEY_BYTES = 16


class FrozenStates:
    """What the embeddings and the lowest layers make of each sequence of tokens, without dropout.

    Rows are found by the tokens themselves, so that any text may come from anywhere. Each process appends to a file of
    its own, locked while it does, and names what is in it at `save`; one that was never named, of a killed process, is
    not read, and deleted by the next.

    Args: folder: made if missing; holds a folder for these very weights; encoder: whose lowest layers are frozen, and
        stay as they are while this is used; layers: how many, at least 1.
    """

    def __init__(self, folder: Path, encoder: BertModel, layers: int) -> None:
        self._layers, self._width = layers, int(encoder.config.hidden_size)
        self._folder = folder / _fingerprint(encoder, layers)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._place: dict[bytes, tuple[int, int, int]] = {}
        self._files: list[BinaryIO] = []
        weakref.finalize(self, _close, self._files)
        for index in sorted(self._folder.glob(f"*{INDEX}")):
            self._open(index)
        for file in self._folder.glob(f"*{STATES}"):
            _delete_forgotten(file)
        self._begin_file()
        self.computed = 0
        """Sequences that were not on file."""

    def last_states(self, encoder: BertModel, input_ids: Tensor, attention_mask: Tensor, types: Tensor) -> Tensor:
        """Give the encoder's last token states, of shape (B, L, D): frozen layers from the file, the others computed.

        Args: input_ids, attention_mask, types: int64 of shape (B, L); padding stands at the end.
        """
        keys, lengths = _keys(input_ids, attention_mask, types)
        missing = [row for row, key in enumerate(keys) if key not in self._place]
        if missing:
            states_BLD = self._compute(encoder, input_ids[missing], attention_mask[missing], types[missing])
            for row, states_LD in zip(missing, states_BLD, strict=True):
                self._append(keys[row], states_LD[: lengths[row]])
        kept_BLD = np.zeros((*input_ids.shape, self._width), dtype=np.float32)
        for row, key in enumerate(keys):
            kept_BLD[row, : lengths[row]] = self._read(key)
        hidden_BLD = torch.from_numpy(kept_BLD).to(input_ids.device)
        mask = encoder.get_extended_attention_mask(attention_mask, input_ids.shape)
        for layer in encoder.encoder.layer[self._layers :]:
            hidden_BLD = layer(hidden_BLD, mask)[0]
        return hidden_BLD

    def save(self) -> None:
        """Name what this process has computed, for itself and for others."""
        if self._writer is None or not self._written:
            return
        self._writer.flush()
        keys, starts, lengths = zip(*self._written, strict=True)
        index = self._own.with_suffix(INDEX)
        new = self._own.with_suffix(".new.npz")
        np.savez(new, key=np.frombuffer(b"".join(keys), dtype=np.uint8), start=starts, length=lengths)
        os.replace(new, index)

    @torch.no_grad()
    def _compute(self, encoder: BertModel, ids: Tensor, mask: Tensor, types: Tensor) -> NDArray[np.float32]:
        frozen = (encoder.embeddings, *encoder.encoder.layer[: self._layers])
        training = [module.training for module in frozen]
        for module in frozen:
            module.eval()
        with torch.autocast(ids.device.type, enabled=False):
            hidden_BLD = encoder.embeddings(input_ids=ids, token_type_ids=types)
            wide_mask = encoder.get_extended_attention_mask(mask, ids.shape)
            for layer in encoder.encoder.layer[: self._layers]:
                hidden_BLD = layer(hidden_BLD, wide_mask)[0]
        for module, was in zip(frozen, training, strict=True):
            module.train(was)
        states: NDArray[np.float32] = hidden_BLD.float().cpu().numpy()
        return states

    def _begin_file(self) -> None:
        """Forget the file that was written, and name another one, opened when there is something to write."""
        self._own = self._folder / f"{os.getpid()}-{os.urandom(4).hex()}{STATES}"
        self._writer: BinaryIO | None = None
        self._written: list[tuple[bytes, int, int]] = []
        self._end = 0

    def _append(self, key: bytes, states_LD: NDArray[np.float32]) -> None:
        if key in self._place:
            return
        if self._writer is None:
            self._writer = self._own.open("w+b")
            fcntl.flock(self._writer, fcntl.LOCK_EX)
            self._files.append(self._writer)
        self._writer.write(np.ascontiguousarray(states_LD).tobytes())
        self._place[key] = (len(self._files) - 1, self._end, len(states_LD))
        self._written.append((key, self._end, len(states_LD)))
        self._end += states_LD.nbytes
        self.computed += 1

    def _read(self, key: bytes) -> NDArray[np.float32]:
        number, start, length = self._place[key]
        file = self._files[number]
        if file is self._writer:
            file.flush()
        size = length * self._width * 4
        found = os.pread(file.fileno(), size, start)
        if len(found) != size:
            raise RunError(
                f"{file.name}: expected {size} bytes from {start} on, found {len(found)}; delete {self._folder}"
            )
        return np.frombuffer(found, dtype=np.float32).reshape(length, self._width)

    def _open(self, index: Path) -> None:
        with contextlib.suppress(FileNotFoundError), np.load(index) as told:
            file = index.with_name(index.name.removesuffix(INDEX) + STATES).open("rb")
            self._files.append(file)
            keys = told["key"].tobytes()
            for i, (start, length) in enumerate(zip(told["start"].tolist(), told["length"].tolist(), strict=True)):
                key = keys[i * _KEY_BYTES : (i + 1) * _KEY_BYTES]
                self._place.setdefault(key, (len(self._files) - 1, start, length))

    def close(self) -> None:
        """Save, and close the files."""
        self.save()
        _close(self._files)
        self._place = {}
        self._begin_file()


def _delete_forgotten(file: Path) -> None:
    """Delete a file that nobody has named and nobody writes to."""
    with contextlib.suppress(FileNotFoundError, BlockingIOError), file.open("rb") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not file.with_suffix(INDEX).is_file():
            file.unlink()


def _close(files: list[BinaryIO]) -> None:
    for file in files:
        file.close()
    files.clear()


def _keys(ids: Tensor, mask: Tensor, types: Tensor) -> tuple[list[bytes], NDArray[np.int64]]:
    """Give a digest of each row's tokens and types, and how many tokens it has."""
    ids_BL, types_BL = ids.cpu().numpy().astype(np.int32), types.cpu().numpy().astype(np.int8)
    length_B: NDArray[np.int64] = mask.sum(dim=1).cpu().numpy()
    keys = []
    for row_L, types_L, length in zip(ids_BL, types_BL, length_B, strict=True):
        digest = hashlib.blake2b(row_L[:length].tobytes(), digest_size=_KEY_BYTES)
        digest.update(types_L[:length].tobytes())
        keys.append(digest.digest())
    return keys, length_B


def _fingerprint(encoder: BertModel, layers: int) -> str:
    """Hash the frozen weights and how many layers they are."""
    digest = hashlib.sha256(f"{layers} {encoder.config.hidden_act} {encoder.config.num_attention_heads}".encode())
    for module in (encoder.embeddings, *encoder.encoder.layer[:layers]):
        for name, tensor in module.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
