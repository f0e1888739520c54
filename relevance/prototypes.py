"""Prototype rationales: a bundle's few typical rationales, and the search for those that lie nearest to a latent.

Shapes: B pairs, P perspectives, M prototypes, K classes, R width of the latent, D width of the rationale space.
"""

from __future__ import annotations

import io
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relevance.errors import BundleError

MAX_BYTES = 1_000_000
_TEXT_ARRAYS = ("perspectives", "texts")
_SHAPES = {
    "perspective_M": ("M",),
    "share_MK": ("M", "K"),
    "size_M": ("M",),
    "direction_MD": ("M", "D"),
    "map_PRD": ("P", "R", "D"),
    "offset_PD": ("P", "D"),
    "floor_P": ("P",),
}
_WHOLE = ("perspective_M", "size_M")
_SUM_TOLERANCE = 1e-3
_DAMAGED = (
    ValueError,
    OSError,
    EOFError,
    AttributeError,
    TypeError,
    SyntaxError,
    RuntimeError,
    MemoryError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile raise for files that are not what they seem."""


@dataclass(frozen=True, slots=True, eq=False)
class Prototypes:
    """Typical rationales of a bundle and, per perspective, the map that puts a latent among them.

    Args: perspectives: P names; texts: M rationales rendered from templates, without catalogue text; perspective_M:
        index into `perspectives`; share_MK: shares of the members' labels, rows sum to 1; size_M: members, training
        pairs; direction_MD: unit rows in the centred rationale space; map_PRD and offset_PD: latent → that space;
        floor_P: similarity under which a pair has no close rationale.
    """

    perspectives: tuple[str, ...]
    texts: tuple[str, ...]
    perspective_M: NDArray[np.int64]
    share_MK: NDArray[np.float32]
    size_M: NDArray[np.int64]
    direction_MD: NDArray[np.float32]
    map_PRD: NDArray[np.float32]
    offset_PD: NDArray[np.float32]
    floor_P: NDArray[np.float32]

    @property
    def latent_width(self) -> int:
        """The width R of the latents that the maps take."""
        return int(self.map_PRD.shape[1])

    def nearest(self, latent_BR: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Find each latent's nearest prototype of each perspective, by cosine similarity; exact.

        Returns: (index_BP into the prototypes, similarity_BP in [-1, 1]); compare the latter with `floor_P`.
        Raises: BundleError: if the latents' width is not that of the maps.
        """
        if latent_BR.ndim != 2 or latent_BR.shape[1] != self.latent_width:
            raise BundleError(f"expected latents of shape (B, {self.latent_width}), found {latent_BR.shape}")
        shape = (len(latent_BR), len(self.perspectives))
        index_BP, similarity_BP = np.empty(shape, np.int64), np.empty(shape, np.float32)
        for perspective, (map_RD, offset_D) in enumerate(zip(self.map_PRD, self.offset_PD, strict=True)):
            members = np.flatnonzero(self.perspective_M == perspective)
            place_BD = latent_BR @ map_RD + offset_D
            length_B = np.maximum(np.linalg.norm(place_BD, axis=1), np.finfo(np.float32).tiny)
            cosine_BM = place_BD @ self.direction_MD[members].T / length_B[:, None]
            best_B = cosine_BM.argmax(axis=1)
            index_BP[:, perspective] = members[best_B]
            similarity_BP[:, perspective] = cosine_BM[np.arange(len(best_B)), best_B]
        return index_BP, np.clip(similarity_BP, -1.0, 1.0)

    def to_bytes(self) -> bytes:
        """Give the content of the bundle's file; equal prototypes give equal bytes.

        Raises: BundleError: if the arrays contradict each other or take more than `MAX_BYTES`.
        """
        self._check(n_classes=self.share_MK.shape[-1])
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {name: np.array(getattr(self, name), np.str_) for name in _TEXT_ARRAYS}
        arrays |= {name: getattr(self, name) for name in _SHAPES}
        np.savez(buffer, **arrays)
        data = buffer.getvalue()
        _check_size(data)
        return data

    @classmethod
    def from_bytes(cls, data: bytes, *, n_classes: int) -> Prototypes:
        """Read prototypes and check them; nothing is unpickled.

        Args: data: what `to_bytes` gave; n_classes: of the bundle's label scheme.
        Raises: BundleError: if they are too large, damaged, or contradict themselves or the scheme.
        """
        _check_size(data)
        try:
            _check_stored(data)
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays: dict[str, Any] = {name: archive[name] for name in archive.files}
        except _DAMAGED as error:
            raise BundleError(f"prototypes: expected an .npz archive of plain arrays, found {error}") from error
        expected = {*_TEXT_ARRAYS, *_SHAPES}
        if set(arrays) != expected:
            raise BundleError(f"prototypes: expected the arrays {sorted(expected)}, found {sorted(arrays)}")
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise BundleError("prototypes: expected an .npz archive of plain arrays, found other members")
        for name in _TEXT_ARRAYS:
            if arrays[name].ndim != 1 or arrays[name].dtype.kind != "U":
                raise BundleError(f"prototypes: expected {name} to be a list of texts, found {arrays[name].dtype}")
            arrays[name] = tuple(str(text) for text in arrays[name])
        prototypes = cls(**arrays)
        prototypes._check(n_classes=n_classes)
        return prototypes

    def _check(self, *, n_classes: int) -> None:
        sizes = {"M": len(self.texts), "P": len(self.perspectives), "K": n_classes}
        for name, axes in _SHAPES.items():
            array, kind = getattr(self, name), np.dtype(np.int64 if name in _WHOLE else np.float32)
            if array.dtype != kind or array.ndim != len(axes):
                raise BundleError(
                    f"prototypes: expected {name} of {len(axes)} axes in {kind}, found {array.ndim} in {array.dtype}"
                )
            expected = tuple(sizes.setdefault(axis, size) for axis, size in zip(axes, array.shape, strict=True))
            if array.shape != expected:
                raise BundleError(f"prototypes: expected {name} of shape {expected}, found {array.shape}")
            if not np.isfinite(array).all():
                raise BundleError(f"prototypes: expected finite numbers in {name}, found NaN or infinity")
        if len(set(self.perspectives)) != len(self.perspectives) or not all(text.strip() for text in self.texts):
            raise BundleError("prototypes: expected perspectives that differ and texts that are not empty")
        if set(self.perspective_M.tolist()) != set(range(sizes["P"])) or not sizes["P"]:
            raise BundleError(
                f"prototypes: expected prototypes of each of the perspectives {self.perspectives}, "
                f"found those of {sorted(set(self.perspective_M.tolist()))}"
            )
        if (
            self.size_M.min() < 1
            or self.share_MK.min() < 0
            or abs(self.share_MK.sum(axis=1) - 1).max() > _SUM_TOLERANCE
        ):
            raise BundleError("prototypes: expected members, and label shares that sum to 1, in every row")
        if abs(np.linalg.norm(self.direction_MD, axis=1) - 1).max() > _SUM_TOLERANCE:
            raise BundleError("prototypes: expected directions of length 1")


def _check_stored(data: bytes) -> None:
    """Refuse members that are compressed: small files must not become large arrays."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > len(data):
                raise BundleError(f"prototypes: expected members stored as they are, found {member.filename!r} packed")


def _check_size(data: bytes) -> None:
    if len(data) > MAX_BYTES:
        raise BundleError(f"prototypes: expected at most {MAX_BYTES} bytes, found {len(data)}")
