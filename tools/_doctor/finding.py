"""What the doctor says about one thing."""

from dataclasses import dataclass

MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Finding:
    """One line. With a remedy something is wrong. Without one all is well, or the line is only worth knowing."""

    about: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        text = " ".join(self.text.splitlines())  # params.yaml has a line for each mistake, and so has DVC
        return f"✗ {self.about}: {text.rstrip('.')}. {self.remedy}" if self.remedy else f"✓ {self.about}: {text}"


def in_bytes(size: float) -> str:
    """A size, such as 13.5 GiB or 20 MiB."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"
