"""Images as files of a few bytes: their codes, entropy-coded with the RQ-Transformer's own odds.

The transformer gives each code a probability from those before it, and a range coder spends
−log2 p bits on it. Encoder and decoder go through the very same cached walk, in the same batches:
a parallel pass over all positions would round differently, and one different bit in a probability
breaks everything after it. For the same reason a file is decoded on the kind of machine that
encoded it; a checksum says where that went wrong.

A file is

    "RQ" 1 | check of the file | check of the codes | images | images a batch | threads | stream

with two bytes of CRC-32 over all that follows the checks, three of that over model, conditions and
codes, and the numbers as variable-length integers: 11 bytes before the stream for up to 127 images.
"""

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rqtoolkit.errors import ArtifactError, ConfigError, DataError
from rqtoolkit.functional.entropy_coding import CodeDecoder, CodeEncoder, code_bits
from rqtoolkit.functional.progress import Progress, report
from rqtoolkit.transformer import RQTransformer

__all__ = ["Compressed", "cheapest_conditions", "compress_codes", "decompress_codes"]

_MAGIC = b"RQ\x01"
_START = len(_MAGIC) + 2 + 3  # of the numbers
_MOST_IMAGES, _MOST_THREADS = 65_536, 4_096  # of a batch; a file that says more is damaged


@dataclass(frozen=True)
class Compressed:
    """Codes of images as bytes.

    Attributes:
        data: What belongs into the file.
        bits: What the model spends on the codes and their conditions, −Σ log2 p.
    """

    data: bytes
    bits: float


@torch.inference_mode()
def cheapest_conditions(
    transformer: RQTransformer,
    codes: Tensor,
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Tensor | None:
    """Return for each image the class under which its codes cost the fewest bits.

    The decoder is told the class, so any will do: this one makes the shortest file.

    Args:
        transformer: A class-conditional model, in eval mode.
        codes: Codes, shape (N, h, w, depth), int64.
        batch_size: Images at a time.
        progress: Called as progress(description, done, total).

    Returns:
        Classes, shape (N,), int64; None for a model without classes.

    Raises:
        ConfigError: If the model is conditioned on texts: there are too many to try.
    """
    if transformer.text_length is not None:
        raise ConfigError(
            "compress: the model is conditioned on texts; got images without. Pass --text."
        )
    if transformer.num_classes is None:
        return None
    device = transformer.embedding.positions.device
    chosen = []
    for start in range(0, len(codes), batch_size):
        part = codes[start : start + batch_size].to(device)
        costs = []
        for label in range(transformer.num_classes):
            odds = transformer(part, torch.full((len(part),), label, device=device)).float()
            likelihoods = odds.log_softmax(-1).gather(-1, part[..., None])
            costs.append(-likelihoods.flatten(1).sum(1))
        chosen.append(torch.stack(costs).argmin(0).cpu())
        report(progress, "Choosing classes", start + len(part), len(codes))
    return torch.cat(chosen)


def compress_codes(
    transformer: RQTransformer,
    codes: Tensor,
    cond: Tensor | None = None,
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Compressed:
    """Entropy-code the codes of images, all of them in one stream.

    Args:
        transformer: The model whose probabilities are used, in eval mode.
        codes: Codes, shape (N, h, w, depth), integers, N at least 1.
        cond: Conditions as the transformer takes them, (N,) classes or (N, n) text tokens; they go
            into the stream too, at log2 of their number each.
        batch_size: Images that go through the transformer together, in decoding too.
        progress: Called as progress(description, done, total).

    Returns:
        The bytes and the bits that the model asked for.

    Raises:
        ConfigError: If cond is missing or given to an unconditional model.
        DataError: If codes or conditions are out of range, or there are none.
    """
    if not len(codes):
        raise DataError("compress: codes holds no image; got shape (0, …). Pass one at least.")
    device = transformer.embedding.positions.device
    batch_size = min(batch_size, len(codes), _MOST_IMAGES)
    encoder, bits = CodeEncoder(), 0.0
    table = _condition_table(transformer)
    for start in range(0, len(codes), batch_size):
        part = codes[start : start + batch_size].long()
        told = None if cond is None else cond[start : start + batch_size]
        if told is not None and table is not None:
            symbols = told.flatten().cpu().numpy()
            encoder.encode(symbols, table)
            bits += code_bits(symbols, table)
        flat = part.flatten(1, -2).to(device)

        def choose(position: int, level: int, logits: Tensor, known: Tensor = flat) -> Tensor:
            nonlocal bits
            code, odds = known[:, position, level], _probabilities(logits)
            encoder.encode(code.cpu().numpy(), odds)
            bits += code_bits(code.cpu().numpy(), odds)
            return code

        transformer.walk(len(part), choose, cond=None if told is None else told.to(device))
        report(progress, "Compressing", start + len(part), len(codes))
    numbers = (len(codes), batch_size, torch.get_num_threads())
    body = b"".join(map(_write_number, numbers)) + encoder.to_bytes()
    checks = _file_check(body) + _codes_check(transformer, codes, cond)
    return Compressed(_MAGIC + checks + body, bits)


def decompress_codes(
    transformer: RQTransformer, data: bytes, *, progress: Progress | None = None
) -> tuple[Tensor, Tensor | None]:
    """Undo `compress_codes`, exactly.

    Args:
        transformer: The model that compressed, in eval mode, on the same kind of device.
        data: What `compress_codes` returned.
        progress: Called as progress(description, done, total).

    Returns:
        Codes, shape (N, h, w, depth), int64, and conditions, (N,) or (N, n), int64, or None; on
        the CPU.

    Raises:
        ArtifactError: If the bytes are no such file, are damaged, or were made with another model
            or where arithmetic rounds differently.
    """
    check, (number, batch_size, threads), stream = _read_header(data)
    decoder, bits = CodeDecoder(stream), 0.0
    device = transformer.embedding.positions.device
    table = _condition_table(transformer)
    codes, conditions = [], []
    try:
        with _threads(threads):
            for start in range(0, number, batch_size):
                size = min(batch_size, number - start)
                told = None
                if table is not None:
                    symbols = decoder.decode(table, count=size * transformer.condition_length)
                    told = torch.from_numpy(symbols).view(size, -1)
                    bits += code_bits(symbols, table)

                def choose(_position: int, _level: int, logits: Tensor) -> Tensor:
                    nonlocal bits
                    odds = _probabilities(logits)
                    code = decoder.decode(odds)
                    bits += code_bits(code, odds)
                    if bits > 8 * len(stream) + 64:  # a damaged header could ask for any number
                        raise DataError("more codes than the stream holds")
                    return torch.from_numpy(code).to(device)

                cond = None if told is None else told.to(device)
                codes.append(transformer.walk(size, choose, cond=cond).cpu())
                conditions += [] if told is None else [told]
                report(progress, "Decompressing", start + size, number)
    except DataError:
        raise _mismatch("a stream that does not fit the model") from None
    whole = torch.cat(codes)
    cond = torch.cat(conditions) if conditions else None
    if cond is not None and transformer.text_length is None:
        cond = cond[:, 0]
    if _codes_check(transformer, whole, cond) != check:
        raise _mismatch("codes of another checksum")
    return whole, cond


def _probabilities(logits: Tensor) -> np.ndarray:
    """Return softmax in float64 on the CPU: of equal logits it is equal wherever it runs."""
    return logits.cpu().double().softmax(-1).numpy()


def _condition_table(transformer: RQTransformer) -> np.ndarray | None:
    """Return the even odds of the conditions, shape (number,); None for a model without."""
    number = transformer.num_classes or transformer.text_vocab
    return None if number is None else np.full(number, 1 / number)


def _file_check(body: bytes) -> bytes:
    """Return two bytes that tell a damaged file before anything in it is believed."""
    return zlib.crc32(body).to_bytes(4, "big")[:2]


def _codes_check(transformer: RQTransformer, codes: Tensor, cond: Tensor | None) -> bytes:
    """Return three bytes that tell another model, and codes that came out otherwise."""
    digest = hashlib.sha256()
    for name, tensor in sorted(transformer.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    sum_of_model = zlib.crc32(digest.digest())
    told = b"" if cond is None else cond.cpu().numpy().astype("<i4").tobytes()
    written = codes.cpu().numpy().astype("<i4").tobytes()
    return zlib.crc32(written, zlib.crc32(told, sum_of_model)).to_bytes(4, "big")[:3]


def _write_number(value: int) -> bytes:
    """Return 7 bits a byte, lowest first; the top bit says that more follow."""
    parts = bytearray()
    while value > 127:
        parts.append(128 | value & 127)
        value >>= 7
    return bytes([*parts, value])


def _read_header(data: bytes) -> tuple[bytes, tuple[int, int, int], bytes]:
    """Split a file into the check of its codes, its three numbers and the stream."""
    if not data.startswith(_MAGIC):
        raise ArtifactError(
            f"decompress: the file is none of compressed images; got {len(data)} bytes that start "
            f"with {data[:3]!r}. Pass what `rqtool imagegen compress` wrote."
        )
    numbers: list[int] = []
    place = _START
    whole = data[3:5] == _file_check(data[_START:])
    while whole and len(numbers) < 3:
        value = shift = 0
        while place < len(data) and data[place] & 128:
            value |= (data[place] & 127) << shift
            place, shift = place + 1, shift + 7
        whole = place < len(data)
        numbers.append(value | data[place] << shift if whole else 0)
        place += 1
    images, batch_size, threads = numbers if whole else (0, 0, 0)
    if not (0 < batch_size <= min(images, _MOST_IMAGES) and 0 < threads <= _MOST_THREADS):
        raise ArtifactError(
            f"decompress: the file is cut off or damaged; got {len(data)} bytes that do not fit "
            f"their checksum. Copy or compress it anew."
        )
    return data[5:_START], (images, batch_size, threads), data[place:]


def _mismatch(fact: str) -> ArtifactError:
    return ArtifactError(
        f"decompress: the codes cannot be had back; got {fact}. The file was made with another "
        f"model, device or version of torch: use those that compressed it."
    )


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Run with so many threads, as the encoder did: their number decides how sums are rounded."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
