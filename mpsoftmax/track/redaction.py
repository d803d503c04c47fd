"""Keeps secrets out of what leaves the run folder: configurations, messages, command lines."""

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "[redacted]"
SECRET_NAME = re.compile(
    r"token|secret|passw|api_?key|access_?key|private_?key|credential", re.IGNORECASE
)
USER_IN_URL = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@]+@", re.IGNORECASE)
SIGNED_URL = re.compile(
    r"([?&](?:sig|signature|x-amz-[a-z-]+|x-goog-[a-z-]+)=)[^&\s]+", re.IGNORECASE
)
LEAST_LENGTH = 8  # of an environment variable's value, to be taken for a secret wherever it occurs


def redacted(value: Any) -> Any:
    """Plain data without what looks like a secret: text below telling names, in URLs, in the environment."""
    if isinstance(value, Mapping):
        return {
            key: hidden(item) if SECRET_NAME.search(str(key)) else redacted(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return redacted_text(value) if isinstance(value, str) else value


def hidden(value: Any) -> Any:
    """A value below a telling name: any text in it is hidden, numbers (num_tokens: 4) stay."""
    if isinstance(value, Mapping):
        return {key: hidden(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [hidden(item) for item in value]
    return HIDDEN if isinstance(value, str) and value else value


def redacted_text(text: str) -> str:
    """Text without user names and passwords in URLs, signatures, and values of secret variables."""
    text = SIGNED_URL.sub(rf"\g<1>{HIDDEN}", USER_IN_URL.sub(rf"\g<1>{HIDDEN}@", text))
    for name, value in os.environ.items():
        if len(value) >= LEAST_LENGTH and SECRET_NAME.search(name):
            text = text.replace(value, HIDDEN)
    return text
