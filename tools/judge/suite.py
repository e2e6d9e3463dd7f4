"""The suite: fetched from the package index once, and which of its files are about what we serve."""

import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]

# The SDK's test files by resource, below tests/api_resources.
RESOURCES: Final = {
    "chat completions": ("chat/test_completions.py", "chat/completions/test_messages.py"),
    "completions": ("test_completions.py",),
    "responses": ("test_responses.py", "responses/test_input_items.py", "responses/test_input_tokens.py"),
    "conversations": ("test_conversations.py", "conversations/test_items.py"),
    "embeddings": ("test_embeddings.py",),
    "moderations": ("test_moderations.py",),
    "models": ("test_models.py",),
    "files": ("test_files.py",),
    "uploads": ("test_uploads.py", "uploads/test_parts.py"),
    "vector stores": (
        "test_vector_stores.py",
        "vector_stores/test_files.py",
        "vector_stores/test_file_batches.py",
    ),
    "batches": ("test_batches.py",),
    "webhooks": ("test_webhooks.py", "webhooks/test_event_types.py"),
}

# Judged all the same, so that nobody takes them for granted.
ABSENT_RESOURCES: Final = ("webhooks",)


def fetched_suite(cache_dir: Path) -> Path:
    """The root of the SDK's source distribution, of the version that is pinned here.

    Raises:
        subprocess.CalledProcessError: the package index does not have it, or cannot be reached.
    """
    version = pinned_version()
    root = cache_dir / f"openai-{version}"
    if not root.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        download = ["pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([sys.executable, "-m", *download, "--dest", cache_dir, f"openai=={version}"], check=True)
        with tarfile.open(cache_dir / f"{root.name}.tar.gz") as archive:
            archive.extractall(cache_dir, filter="data")
    return root


def pinned_version() -> str:
    """The SDK's version in constraints.txt."""
    (version,) = re.findall(r"^openai==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return str(version)
