"""Texts as tokens of one length: what a text-conditional transformer is told.

A tokenizer is a `tokenizer.json` of Hugging Face's `tokenizers`, trained here or brought along.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imagegen.data.lists import open_list
from rqtoolkit.errors import ArtifactError, ConfigError, DataError, MissingDependencyError
from rqtoolkit.io.atomic import atomic_path

if TYPE_CHECKING:
    from imagegen.runs import Run

__all__ = [
    "Tokenizer",
    "keep_tokenizer",
    "load_run_tokenizer",
    "load_tokenizer",
    "read_texts",
    "train_tokenizer",
    "training_tokenizer",
]

PAD = "[PAD]"


class Tokenizer:
    """Encodes texts as rows of equally many tokens: cut where they are longer, else padded.

    Args:
        backend: A `tokenizers.Tokenizer` with a token for padding.
        length: Tokens of each text; None takes the length the backend pads to.

    Raises:
        ConfigError: If there is no length or no token for padding.
    """

    def __init__(self, backend: Any, length: int | None = None) -> None:
        padding = backend.padding or {}
        length = padding.get("length") if length is None else length
        if length is None:
            raise ConfigError(
                "tokenizer: it pads to no length of its own; got text_length=None. Set "
                "transformer.text_length, 32 in the paper."
            )
        pad = padding.get("pad_token", PAD)
        if backend.token_to_id(pad) is None:
            raise ConfigError(
                f"tokenizer: it has no token {pad} to pad with; got a vocabulary of "
                f"{backend.get_vocab_size()}. Add one with add_special_tokens."
            )
        backend.enable_truncation(length)
        backend.enable_padding(length=length, pad_id=backend.token_to_id(pad), pad_token=pad)
        if getattr(backend.model, "dropout", None):
            backend.model.dropout = None  # one text, one row: see train_tokenizer
        self.backend, self.length = backend, length

    @property
    def vocabulary(self) -> int:
        """Number of tokens: `text_vocab` of `rqtoolkit.RQTransformer`."""
        return int(self.backend.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Encode texts.

        Args:
            texts: N texts.

        Returns:
            Tokens, shape (N, length), int64.
        """
        rows = [encoding.ids for encoding in self.backend.encode_batch(list(texts))]
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), self.length)

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as a tokenizer.json.

        Raises:
            ArtifactError: If the folder is missing.
        """
        with atomic_path(path) as temporary:
            temporary.write_text(self.backend.to_str(), encoding="utf-8")


def train_tokenizer(
    texts: Iterable[str], *, vocabulary: int = 16384, length: int = 32
) -> Tokenizer:
    """Train a byte-level BPE on texts, in lower case.

    Every text can be encoded: what was never seen falls apart into bytes. The paper's BPE drops
    merges at random while it trains (10%); that is left out, since `tokenizers` draws from a
    generator that cannot be seeded, and a resumed run would see other tokens.

    Args:
        texts: What to learn from.
        vocabulary: Tokens at most, 256 bytes and the padding included.
        length: Tokens of each text.

    Raises:
        ConfigError: If the vocabulary does not hold all bytes.
        DataError: If there are no texts.
        MissingDependencyError: If tokenizers is not installed.

    References:
        Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", ACL 2016.
        Lee et al., "Autoregressive Image Generation using Residual Quantization", CVPR 2022,
        appendix A: 16,384 tokens, 32 a text.
    """
    tokenizers = _import_tokenizers()
    bytes_ = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    if vocabulary <= len(bytes_):
        raise ConfigError(
            f"tokenizer: vocabulary={vocabulary} must be over {len(bytes_)}, the bytes and the "
            f"padding. Use 16384."
        )
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.NFKC(), tokenizers.normalizers.Lowercase()]
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[PAD], initial_alphabet=bytes_, show_progress=False
    )
    texts = list(texts)
    if not any(text.strip() for text in texts):
        raise DataError("tokenizer: there is nothing to learn from; got no texts. Give some.")
    backend.train_from_iterator(texts, trainer=trainer)
    return Tokenizer(backend, length)


def load_tokenizer(path: str | Path, *, length: int | None = None) -> Tokenizer:
    """Load a tokenizer.

    Args:
        path: A tokenizer.json; or a folder with one `*vocab.json` and one `*merges.txt`, which are
            read as the text tokenizer of the paper's released CC-3M model: a BPE on letters, in
            lower case, padded with [PAD].
        length: Tokens of each text; None takes what the file says.

    Raises:
        ArtifactError: If the file is missing or no tokenizer.
        ConfigError: If there is no length or no token for padding.
        MissingDependencyError: If tokenizers is not installed.
    """
    path, tokenizers = Path(path), _import_tokenizers()
    vocabularies, merges = sorted(path.glob("*vocab.json")), sorted(path.glob("*merges.txt"))
    is_pair = len(vocabularies) == len(merges) == 1
    if not path.is_file() and not is_pair:
        raise ArtifactError(
            f"tokenizer: {path} is neither a tokenizer.json nor a folder with one *vocab.json and "
            f"one *merges.txt. Check the path, or run `rqtool imagegen tokenizer`."
        )
    try:
        if is_pair:
            pair = str(vocabularies[0]), str(merges[0])
            letters = tokenizers.CharBPETokenizer.from_file(
                *pair, unk_token="[UNK]", lowercase=True
            )
            letters.add_special_tokens([PAD])
            backend = tokenizers.Tokenizer.from_str(letters.to_str())
        else:
            backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more precise
        reason = " ".join(str(error).split())
        raise ArtifactError(
            f"tokenizer: {path} cannot be read; got {reason:.120}. Write it with "
            f"`rqtool imagegen tokenizer`."
        ) from None
    return Tokenizer(backend, length)


def read_texts(path: str | Path) -> Sequence[str]:
    """Return the texts of a file: a text a line, or the captions of a list of images.

    Args:
        path: Plain text; or lines with tabs, or .csv, as `imagegen.data.lists.open_list` reads.

    Raises:
        ArtifactError: If the file is missing or not UTF-8.
        DataError: If a list has no captions.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"tokenizer: {path} cannot be read as texts; got {type(error).__name__}: {error}. Give "
            f"a file in UTF-8, a text a line."
        ) from None
    if path.suffix.lower() != ".csv" and not any("\t" in line for line in lines[:1]):
        return [line for line in lines if line.strip()]
    texts = open_list(path).texts
    if texts is None:
        raise DataError(
            f"tokenizer: {path} has no captions; got a list of images and classes. Give a list "
            f"with captions, or a text a line."
        )
    return texts


def training_tokenizer(run: Run, *, anew: bool = False) -> Tokenizer | None:
    """Load the tokenizer that a run is to be trained with, None where its configuration names none.

    It is the one the run keeps, since the file it was copied from may have moved; where that file
    is still there, it must not have changed.

    Args:
        run: The run, whose folder need not be there yet.
        anew: Leave out of account what an earlier run in the folder keeps.

    Raises:
        ArtifactError: If no file is there, or one is no tokenizer.
        ConfigError: If the run keeps another tokenizer than the file named.
    """
    source, length = run.config.data.tokenizer, run.config.transformer.text_length
    if source is None:
        return None
    kept = _kept_tokenizer(run)
    if anew or not kept.exists():
        return load_tokenizer(source, length=length)
    tokenizer = load_tokenizer(kept, length=length)
    if Path(source).exists():
        named = load_tokenizer(source, length=length)
        if named.backend.to_str() != tokenizer.backend.to_str():
            raise ConfigError(
                f"tokenizer: data.tokenizer={source} is not the one this run began with; got "
                f"another content than {kept}. Name that file, or choose another folder."
            )
    return tokenizer


def keep_tokenizer(run: Run, tokenizer: Tokenizer | None) -> None:
    """Write the tokenizer of a run into its folder, where it is not there yet.

    Tokens mean nothing without it, and the file it came from may move.
    """
    kept = _kept_tokenizer(run)
    if tokenizer is not None and not kept.exists():
        tokenizer.save(kept)


def load_run_tokenizer(run: Run) -> Tokenizer:
    """Load the tokenizer that a run keeps, or else the one its configuration names.

    Raises:
        ConfigError: If the run has none: it was trained without texts.
        ArtifactError: If its file is missing or damaged.
    """
    kept, named = _kept_tokenizer(run), run.config.data.tokenizer
    if not kept.is_file() and named is None:
        raise ConfigError(
            f"tokenizer: {run.path} was trained without texts; got no data.tokenizer. Train a run "
            f"with one."
        )
    path = kept if kept.is_file() else Path(named or "")
    return load_tokenizer(path, length=run.config.transformer.text_length)


def _kept_tokenizer(run: Run) -> Path:
    return run.path / "tokenizer.json"


def _import_tokenizers() -> ModuleType:
    try:
        import tokenizers
    except ImportError:
        raise MissingDependencyError(
            "tokenizer: texts need tokenizers; got none installed. Run "
            "`pip install 'rqtoolkit[text]'`."
        ) from None
    return tokenizers
