"""One link of a chain of transforms: a file, or the inverse of it; as text, ``FILE[,inverse]``."""

import re
from dataclasses import dataclass
from pathlib import Path

from ..geometry.transform import Transform
from .spaces import Space, TransformFile

INVERSE = ",inverse"
AS_ANTS = re.compile(r"\[\s*(.+?)\s*,\s*([01])\s*\]")


@dataclass(frozen=True)
class Link:
    """The path of a transform file; `inverse` is True where its inverse is meant."""

    path: Path
    inverse: bool = False

    @classmethod
    def parse(cls, text: str) -> "Link":
        """Parse ``FILE`` or ``FILE,inverse``; also ANTs' spelling, ``[FILE,0]`` and ``[FILE,1]``."""
        if match := AS_ANTS.fullmatch(text):
            return cls(Path(match[1]), match[2] == "1")
        inverse = text.lower().endswith(INVERSE)
        return cls(Path(text[: -len(INVERSE)] if inverse else text), inverse)

    def __str__(self) -> str:
        return f"{self.path}{INVERSE if self.inverse else ''}"


@dataclass(frozen=True, eq=False)
class ReadLink:
    """A transform file that was read, used as it is or inverted; transform and sides are those in use."""

    file: TransformFile
    inverse: bool = False

    @property
    def start(self) -> Space | None:
        return self.file.end if self.inverse else self.file.start

    @property
    def end(self) -> Space | None:
        return self.file.start if self.inverse else self.file.end

    @property
    def transform(self) -> Transform:
        """The transform from the link's start into its end."""
        return self.file.transform.inverse() if self.inverse else self.file.transform

    @property
    def inverted(self) -> "ReadLink":
        """The same file, the other way round."""
        return ReadLink(self.file, not self.inverse)

    def __str__(self) -> str:
        return str(Link(self.file.path, self.inverse))
