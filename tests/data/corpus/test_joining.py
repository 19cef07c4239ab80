from collections import Counter

import numpy as np
import pytest
from lhotse import AudioSource, Recording, SupervisionSegment
from lhotse.cut import Cut

from spear.data.corpus.joining import join_cuts, parse_range
from spear.errors import ConfigError


def make_cuts(count: int, duration_s: float = 0.5) -> list[Cut]:
    cuts = []
    for number in range(count):
        key = f"word{number}"
        source = AudioSource("file", [0], f"{key}.wav")
        recording = Recording(key, [source], 16000, int(duration_s * 16000), duration_s)
        cut = recording.to_cut()
        cut.custom = {"domain": "speech"}
        cut.supervisions = [
            SupervisionSegment(key, key, 0.0, duration_s, text=f"w{number}", speaker="ann")
        ]
        cuts.append(cut)
    return cuts


def join(count: int, seed: int = 0, prefix: str = "train-ann", num_passes: int = 1) -> list[Cut]:
    return list(
        join_cuts(
            make_cuts(count),
            prefix,
            sizes=(3, 6),
            gap_s=(0.1, 0.2),
            seed=seed,
            num_passes=num_passes,
        )
    )


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 20, 101])
def test_every_recording_is_used_once_in_groups_of_the_range(count: int) -> None:
    joined = join(count)
    words = Counter(word for cut in joined for word in cut.supervisions[0].text.split())
    assert words == Counter(f"w{number}" for number in range(count))
    if count >= 6:
        assert all(3 <= len(cut.tracks) <= 6 for cut in joined)


def test_transcript_follows_the_order_of_the_audio() -> None:
    for cut in join(50):
        order = [track.cut.recording_id.replace("word", "w") for track in cut.tracks]
        assert cut.supervisions[0].text.split() == order
        assert len(cut.supervisions) == 1
        assert cut.supervisions[0].duration == cut.duration
        assert cut.custom["domain"] == "speech"


def test_gaps_lie_in_their_range() -> None:
    for cut in join(50):
        ends = [track.offset + track.cut.duration for track in cut.tracks]
        gaps = np.array([track.offset for track in cut.tracks[1:]]) - ends[:-1]
        assert (gaps >= 0.0999).all() and (gaps <= 0.2001).all()


def test_a_function_of_seed_prefix_and_pass() -> None:
    def texts(**settings: object) -> list[str]:
        return [cut.supervisions[0].text for cut in join(30, **settings)]  # type: ignore[arg-type]

    assert texts() == texts()
    assert texts(seed=1) != texts()
    assert texts(prefix="train-bob") != texts()
    twice = texts(num_passes=2)
    assert twice[: len(texts())] == texts()
    assert sorted(" ".join(twice).split()) == sorted(2 * " ".join(texts()).split())
    ids = [cut.id for cut in join(30, num_passes=3)]
    assert len(set(ids)) == len(ids)


def test_reads_ranges() -> None:
    assert parse_range("3-6") == (3, 6)
    assert parse_range(" 2 ") == (2, 2)
    for wrong in ("", "6-3", "0-2", "a-b", "3-6-9", "-2"):
        with pytest.raises(ConfigError, match="range such as 3-6"):
            parse_range(wrong)
