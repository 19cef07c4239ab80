"""Classes of sounds, and which recording has which: Kaldi-like text files.

`utt2labels` has a line `id label,label,...` for every recording; shards stay as they are, whatever
they are labelled with. Labels may have spaces inside, no commas. A file of classes, `label name`
on a line, fixes their order and gives them names to show (AudioSet's labels are ids such as
/m/09x0r); without one the classes are the labels that occur, sorted.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spear.data.formats.kaldi_text import read_text
from spear.errors import DataError

Labels = Mapping[str, tuple[str, ...]]
"""Labels by recording id."""


@dataclass(frozen=True)
class Classes:
    """What a tagger tells apart, in the order of its outputs.

    Attributes:
        labels: As the label files write them.
        names: As people read them.
    """

    labels: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def load(cls, path: str | Path) -> "Classes":
        """Reads a file of `label name` lines; a label alone is its own name.

        Raises:
            DataError: The file is missing or empty, or a label or a name is there twice.
        """
        names = {label: name or label for label, name in read_text(path).items()}
        name, count = Counter(names.values()).most_common(1)[0]
        if count > 1:
            raise DataError(f"{path}: two classes are called {name!r}; tell their names apart")
        return cls(tuple(names), tuple(names.values()))

    @classmethod
    def of(cls, labels: Iterable[str]) -> "Classes":
        """Makes classes of the labels that occur, sorted."""
        distinct = tuple(sorted(set(labels)))
        return cls(distinct, distinct)

    def __len__(self) -> int:
        """Returns the number of classes."""
        return len(self.labels)

    def numbers(self, labels: Labels, where: str) -> list[list[int]]:
        """Returns the class numbers of every recording, in the order of `labels`.

        Raises:
            DataError: A label is no class.
        """
        number = {label: place for place, label in enumerate(self.labels)}
        unknown = sorted({one for own in labels.values() for one in own if one not in number})
        if unknown:
            raise DataError(
                f"{where}: {len(unknown)} labels are not among the {len(self)} classes, e.g. "
                f"{unknown[0]!r}: add them to the file of classes, or correct the labels"
            )
        return [[number[one] for one in own] for own in labels.values()]


def read_labels(paths: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Reads `utt2labels` files; a recording without a label has none of the classes.

    Raises:
        DataError: No file is given, one is missing or malformed, or two speak of one recording.
    """
    if not paths:
        raise DataError("no labels: name files of 'id label,label' lines in data.labels")
    found: dict[str, tuple[str, ...]] = {}
    for path in paths:
        for key, text in read_text(path).items():
            if key in found:
                raise DataError(f"{path}: {key!r} has its labels in another file already")
            split = (label.strip() for label in text.split(","))
            found[key] = tuple(dict.fromkeys(label for label in split if label))
    return found
