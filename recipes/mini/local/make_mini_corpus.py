"""Makes the corpus that `recipes/mini` carries: spoken digit strings and sound events.

Speech: twelve espeak-ng voices read strings of three to six digits at drawn speeds and pitches,
over a little pink noise. Audio: the ten classes of `sound_events.py`. Everything is 16 kHz mono
Opus in Ogg, beside the Kaldi files `text`, `utt2spk`, `test_ids` and `valid_ids`. No string of
digits occurs twice, so that those of the test set are unseen in training.

espeak-ng is needed only here: the result is committed. The seed fixes every sample before
encoding; the files themselves differ between runs in the random serial number of Ogg.
"""

import argparse
import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
from sound_events import EVENTS, RATE_HZ, Samples, coloured_noise, db_to_gain, draw_event

DIGITS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
VOICES = (
    "en-us+m1",
    "en-us+f2",
    "en-us+m3",
    "en-us+f5",
    "en-gb+m2",
    "en-gb+f1",
    "en-gb-x-rp+f4",
    "en-gb-x-rp+m7",
    "en-gb-scotland+m4",
    "en-gb-x-gbclan+f3",
    "en-029+m6",
    "en-us-nyc+m8",
)
LENGTHS = (3, 4, 5, 6)
SPEECH, AUDIO = 0, 1  # the purposes that random numbers are drawn for


def draw_strings(rng: np.random.Generator, count: int) -> list[tuple[int, ...]]:
    """Draws `count` different strings of digits; every length is equally frequent."""
    strings: dict[tuple[int, ...], None] = {}
    while len(strings) < count:
        length = LENGTHS[len(strings) % len(LENGTHS)]
        strings.setdefault(tuple(int(d) for d in rng.integers(0, 10, length)))
    order = rng.permutation(count)
    drawn = list(strings)
    return [drawn[index] for index in order]


def speak(words: str, voice: str, speed_wpm: int, pitch: int) -> Samples:
    """Returns what espeak-ng says, (S,) float64 at 16 kHz.

    Args:
        words: What to say, in English words.
        voice: espeak-ng's voice with a variant, e.g. "en-us+m1".
        speed_wpm: Words per minute.
        pitch: 0 to 99; 50 is the voice's own.
    """
    command = ["espeak-ng", "-v", voice, "-s", str(speed_wpm), "-p", str(pitch), "--stdout"]
    spoken = subprocess.run([*command, words.lower()], check=True, capture_output=True).stdout
    samples, rate_hz = sf.read(io.BytesIO(spoken), dtype="float64")
    return np.asarray(soxr.resample(samples, rate_hz, RATE_HZ, quality="VHQ"))


def draw_utterance(rng: np.random.Generator, words: str, voice: str) -> Samples:
    """Says `words` at a drawn speed, pitch and level, with margins and a noise floor."""
    speech = speak(words, voice, int(rng.integers(120, 201)), int(rng.integers(30, 71)))
    margins = rng.integers(round(0.05 * RATE_HZ), round(0.25 * RATE_HZ), 2)
    loud = np.flatnonzero(np.abs(speech) > 0.01 * np.abs(speech).max())
    speech = np.pad(speech[loud[0] : loud[-1]], tuple(int(margin) for margin in margins))
    snr_db, peak_db = rng.uniform(20.0, 40.0), rng.uniform(-14.0, -1.0)
    level = float(np.sqrt(np.mean(speech**2))) * db_to_gain(-snr_db)
    speech = speech + level * coloured_noise(rng, len(speech), slope=1.0)
    return speech * db_to_gain(peak_db) / float(np.abs(speech).max())


def write_ogg(path: Path, samples: Samples, compression: float) -> float:
    """Writes Opus in Ogg and returns the length in seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, samples, RATE_HZ, format="OGG", subtype="OPUS", compression_level=compression)
    return len(samples) / RATE_HZ


def write_lists(folder: Path, transcripts: dict[str, str], args: argparse.Namespace) -> None:
    """Writes `text`, `utt2spk`, `test_ids` and `valid_ids`, sorted as Kaldi wants them."""
    index = {key: int(key.rsplit("-", 1)[1]) for key in transcripts}
    last_valid = args.num_test + args.num_valid
    lists = {
        "text": [f"{key} {words}" for key, words in transcripts.items()],
        "utt2spk": [f"{key} {key.rsplit('-', 1)[0]}" for key in transcripts],
        "test_ids": [key for key in transcripts if index[key] < args.num_test],
        "valid_ids": [key for key in transcripts if args.num_test <= index[key] < last_valid],
    }
    for name, lines in lists.items():
        (folder / name).write_text("".join(f"{line}\n" for line in sorted(lines)), "utf-8")


def make_speech(folder: Path, args: argparse.Namespace) -> float:
    """Writes `{voice}/{index}.ogg` and the lists; returns the length in seconds."""
    strings = draw_strings(
        np.random.default_rng((args.seed, SPEECH)), len(VOICES) * args.num_per_voice
    )
    transcripts: dict[str, str] = {}
    total_s = 0.0
    for number, string in enumerate(strings):
        voice, index = VOICES[number % len(VOICES)], number // len(VOICES)
        words = " ".join(DIGITS[digit] for digit in string)
        rng = np.random.default_rng((args.seed, SPEECH, number))
        speaker = voice.replace("+", "_")
        samples = draw_utterance(rng, words, voice)
        total_s += write_ogg(folder / speaker / f"{index:03d}.ogg", samples, args.compression)
        transcripts[f"{speaker}-{index:03d}"] = words
    write_lists(folder, transcripts, args)
    return total_s


def make_audio(folder: Path, args: argparse.Namespace) -> float:
    """Writes `{class}_{index}.ogg`; returns the length in seconds."""
    total_s = 0.0
    for number, name in enumerate(sorted(EVENTS)):
        for index in range(args.num_per_event):
            rng = np.random.default_rng((args.seed, AUDIO, number, index))
            samples = draw_event(name, rng, rng.uniform(2.0, 4.0))
            total_s += write_ogg(folder / f"{name}_{index:03d}.ogg", samples, args.compression)
    return total_s


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--output-dir", type=Path, default=Path("recipes/mini/corpus"))
    parser.add_argument("--seed", type=int, default=20261120)
    parser.add_argument("--num-per-voice", type=int, default=48, help="utterances of a voice")
    parser.add_argument("--num-test", type=int, default=5, help="of these, the test set")
    parser.add_argument("--num-valid", type=int, default=3, help="of these, to validate")
    parser.add_argument("--num-per-event", type=int, default=12, help="clips of each sound class")
    parser.add_argument("--compression", type=float, default=0.94, help="libsndfile's, 0 to 1")
    return parser.parse_args()


def main() -> int:
    """Makes both halves and says how large they are."""
    args = parse_args()
    if shutil.which("espeak-ng") is None:
        sys.stderr.write("make_mini_corpus.py: espeak-ng is needed: apt-get install espeak-ng\n")
        return 2
    for part, make in (("speech", make_speech), ("audio", make_audio)):
        folder = args.output_dir / part
        shutil.rmtree(folder, ignore_errors=True)
        total_s = make(folder, args)
        size = sum(file.stat().st_size for file in folder.rglob("*.ogg"))
        sys.stdout.write(f"{part}: {total_s / 60:.1f} min, {size / 1e6:.2f} MB in {folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
