"""Whether a model file may name code that is imported."""

from mpsoftmax.config import Config

PACKAGES = ("timm", "transformers")


def check_trusted(config: Config, where: str, trust_code: bool) -> None:
    """Raise ValueError where the backbone is package.module:callable and that was not allowed."""
    door, colon, _ = config.backbone.name.partition(":")
    if colon and door not in PACKAGES and not trust_code:
        raise ValueError(
            f"{where}: its backbone is {config.backbone.name!r}: code named by a checkpoint is run only with "
            "--trust-code"
        )
