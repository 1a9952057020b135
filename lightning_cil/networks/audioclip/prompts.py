"""`Prompts`: what a config says of the texts that stand for a class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_cil.networks.audioclip.prototypes import TextPrototypes
from lightning_cil.networks.audioclip.templates import TEMPLATES
from lightning_cil.networks.audioclip.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompts:
    """The templates of the class names, and how much of them goes through the text tower at once.

    Args:
        templates: Texts with one `{}` each, or how many of our own 35 (the paper's number; 1: no textual diversity).
        sample: See `TextPrototypes`.
        chunk_size: See `TextPrototypes`.
        recompute: See `TextPrototypes`.
        check: See `TextPrototypes`.
        seed: See `TextPrototypes`.

    Raises:
        ValueError: For a number of templates that there are not.
    """

    templates: int | Sequence[str] = 35
    sample: int | None = None
    chunk_size: int | None = None
    recompute: bool = False
    check: Literal["versions", "content"] = "versions"
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.templates, int) and not 1 <= self.templates <= len(TEMPLATES):
            raise ValueError(
                f"Prompts got `templates={self.templates}`, expected 1 to {len(TEMPLATES)}, or a list of texts with "
                "`{}`."
            )

    def build(self, tokenizer: Tokenizer) -> TextPrototypes:
        """Make the prototypes, without classes yet; see `TextPrototypes` for what is refused."""
        given = self.templates
        return TextPrototypes(
            tokenizer,
            TEMPLATES[:given] if isinstance(given, int) else given,
            sample=self.sample,
            chunk_size=self.chunk_size,
            recompute=self.recompute,
            check=self.check,
            seed=self.seed,
        )
