"""Ten classes of synthetic sound events, drawn in numpy from a seeded generator.

The mini recipe needs general audio without a download. Each class is one function
`(rng, num_samples) -> (num_samples,) float64` at 16 kHz that draws its own parameters, so that two
clips of a class differ the way two recordings would, and `draw_event` brings the result to a
random level above a quiet noise floor. `make_mini_corpus.py` writes them to files.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 16000

Samples = NDArray[np.float64]


def draw_event(name: str, rng: np.random.Generator, duration_s: float) -> Samples:
    """Draws one clip of the class `name`.

    Args:
        name: A key of `EVENTS`.
        rng: The generator that every parameter of the clip is drawn from.
        duration_s: Length of the clip in seconds.

    Returns:
        (round(duration_s * 16000),) float64, peak between -14 and -1 dB of full scale.
    """
    num_samples = round(duration_s * RATE_HZ)
    sound = EVENTS[name](rng, num_samples)
    peak_db = rng.uniform(-14.0, -1.0)
    floor_db = rng.uniform(-65.0, -45.0)
    sound = sound / max(float(np.abs(sound).max()), 1e-9)
    sound = sound + db_to_gain(floor_db) * coloured_noise(rng, num_samples, slope=1.0)
    return sound * db_to_gain(peak_db) / float(np.abs(sound).max())


def db_to_gain(level_db: float) -> float:
    """Returns the amplitude factor of a level in dB."""
    return float(10.0 ** (level_db / 20.0))


def coloured_noise(rng: np.random.Generator, num_samples: int, slope: float) -> Samples:
    """Draws noise whose power falls as 1 / f**slope (0 white, 1 pink, 2 brown); RMS 1."""
    frequency = np.fft.rfftfreq(num_samples, 1.0 / RATE_HZ)
    return shaped_noise(rng, num_samples, np.maximum(frequency, 20.0) ** (-slope / 2.0))


def shaped_noise(rng: np.random.Generator, num_samples: int, response: Samples) -> Samples:
    """Draws noise with the amplitude response `response` (num_samples // 2 + 1,); RMS 1."""
    spectrum = np.fft.rfft(rng.standard_normal(num_samples)) * response
    noise = np.fft.irfft(spectrum, num_samples)
    return noise / np.sqrt(np.mean(noise**2))


def band_noise(
    rng: np.random.Generator, num_samples: int, centre_hz: float, octaves: float
) -> Samples:
    """Draws noise around `centre_hz`, a bell `octaves` wide on a logarithmic frequency axis."""
    frequency = np.maximum(np.fft.rfftfreq(num_samples, 1.0 / RATE_HZ), 1.0)
    distance = np.log2(frequency / centre_hz) / octaves
    return shaped_noise(rng, num_samples, np.exp(-0.5 * distance**2))


def slow_curve(rng: np.random.Generator, num_samples: int, points_per_s: float) -> Samples:
    """Draws a smooth curve between 0 and 1: random points joined by half cosines."""
    num_points = max(2, round(num_samples / RATE_HZ * points_per_s) + 2)
    points = rng.uniform(0.0, 1.0, num_points)
    place = np.linspace(0.0, num_points - 1.001, num_samples)
    left = place.astype(int)
    share = 0.5 - 0.5 * np.cos(np.pi * (place - left))
    return points[left] * (1.0 - share) + points[left + 1] * share


def sine(frequency_hz: Samples | float, num_samples: int, phase: float = 0.0) -> Samples:
    """Returns a sine whose frequency may change with every sample."""
    steps = np.broadcast_to(np.asarray(frequency_hz, dtype=np.float64), (num_samples,))
    return np.sin(phase + 2.0 * np.pi * np.cumsum(steps) / RATE_HZ)


def decay(num_samples: int, half_life_s: float) -> Samples:
    """Returns an exponential fall from 1 that halves every `half_life_s` seconds."""
    return 0.5 ** (np.arange(num_samples) / RATE_HZ / half_life_s)


def soften(sound: Samples, edge_s: float) -> Samples:
    """Fades both ends of a sound over `edge_s` seconds, so that it does not click."""
    edge = min(round(edge_s * RATE_HZ), len(sound) // 2)
    ramp = 0.5 - 0.5 * np.cos(np.pi * np.arange(edge) / max(edge, 1))
    sound = sound.copy()
    sound[:edge] *= ramp
    sound[len(sound) - edge :] *= ramp[::-1]
    return sound


def scatter(
    rng: np.random.Generator,
    num_samples: int,
    gap_s: tuple[float, float],
    draw: Callable[[], Samples],
) -> Samples:
    """Places one sound after another, with gaps drawn between the two values of `gap_s`."""
    mixture = np.zeros(num_samples)
    start = round(rng.uniform(0.0, gap_s[0]) * RATE_HZ)
    while start < num_samples:
        piece = draw()[: num_samples - start]
        mixture[start : start + len(piece)] += piece * rng.uniform(0.5, 1.0)
        start += max(1, round(rng.uniform(*gap_s) * RATE_HZ))
    return mixture


def draw_modes(rng: np.random.Generator, ratios: Samples, base_hz: float, ring_s: float) -> Samples:
    """Draws a struck body: decaying partials at `ratios * base_hz`, the higher the shorter."""
    num_samples = round(min(6.0 * ring_s, 3.0) * RATE_HZ)
    sound = np.zeros(num_samples)
    for ratio in ratios[ratios * base_hz < 0.45 * RATE_HZ]:
        gain = rng.uniform(0.4, 1.0) / ratio**0.7
        partial = sine(float(ratio) * base_hz, num_samples, rng.uniform(0.0, 2.0 * np.pi))
        sound += gain * partial * decay(num_samples, ring_s / float(ratio) ** 0.6)
    return soften(sound, 0.002)


def birds(rng: np.random.Generator, num_samples: int) -> Samples:
    """Chirps: short whistles that sweep up or down between 2 and 6 kHz, in phrases."""
    base_hz = rng.uniform(2200.0, 4200.0)
    sweep = rng.uniform(-0.45, 0.45)
    length_s = rng.uniform(0.05, 0.18)
    trill_hz = rng.uniform(12.0, 40.0)

    def whistle() -> Samples:
        size = round(length_s * rng.uniform(0.7, 1.3) * RATE_HZ)
        place = np.linspace(-1.0, 1.0, size)
        vibrato = 1.0 + 0.04 * sine(trill_hz, size)
        pitch = base_hz * rng.uniform(0.9, 1.15) * 2.0 ** (sweep * place) * vibrato
        return soften(sine(np.minimum(pitch, 7000.0), size), 0.02)

    return scatter(rng, num_samples, (0.08, rng.uniform(0.2, 0.6)), whistle)


def bell(rng: np.random.Generator, num_samples: int) -> Samples:
    """Strokes of one bell, with the inharmonic partials of a church bell."""
    ratios = np.array([0.5, 1.0, 1.2, 1.5, 2.0, 2.67, 3.0, 4.0, 5.33]) * rng.uniform(0.99, 1.01, 9)
    base_hz = rng.uniform(250.0, 1400.0)
    ring_s = rng.uniform(0.12, 0.5)

    def stroke() -> Samples:
        return draw_modes(rng, ratios, base_hz, ring_s)

    return scatter(rng, num_samples, (0.5, rng.uniform(0.6, 1.6)), stroke)


def engine(rng: np.random.Generator, num_samples: int) -> Samples:
    """A motor: a pulse train of drifting rate through two resonances, with exhaust noise."""
    rate = rng.uniform(25.0, 110.0) * 2.0 ** (0.6 * (slow_curve(rng, num_samples, 1.0) - 0.5))
    resonance_hz = rng.uniform(180.0, 900.0, 2)
    sound = 0.25 * band_noise(rng, num_samples, float(resonance_hz.mean()), 1.0)
    sound *= 1.0 + 0.8 * sine(rate, num_samples)
    for harmonic in range(1, 40):
        frequency = harmonic * rate
        distance = np.log2(frequency[:, None] / resonance_hz[None, :])
        gain = 0.15 / harmonic**0.5 + np.exp(-4.0 * distance**2).sum(axis=1)
        gain *= frequency < 0.45 * RATE_HZ
        sound += rng.uniform(0.3, 1.0) * gain * sine(frequency, num_samples, rng.uniform(0, 6.28))
    return sound


def rain(rng: np.random.Generator, num_samples: int) -> Samples:
    """Rain: a bright hiss and many separate drops."""
    hiss = band_noise(rng, num_samples, rng.uniform(2500.0, 5500.0), rng.uniform(0.8, 1.5))
    drops = np.zeros(num_samples)
    places = rng.integers(0, num_samples, round(rng.uniform(40.0, 250.0) * num_samples / RATE_HZ))
    drops[places] = rng.exponential(1.0, len(places)) * rng.choice([-1.0, 1.0], len(places))
    size = round(0.01 * RATE_HZ)
    splash = sine(rng.uniform(1500.0, 4000.0), size) * decay(size, rng.uniform(0.0008, 0.002))
    drops = np.convolve(drops, splash)[:num_samples]
    return 0.3 * hiss + rng.uniform(0.5, 1.5) * drops


def clicks(rng: np.random.Generator, num_samples: int) -> Samples:
    """Typing: pairs of short dry clicks, key down and key up."""
    centre_hz = rng.uniform(1500.0, 4500.0)
    half_life_s = rng.uniform(0.0015, 0.004)
    travel = round(rng.uniform(0.05, 0.1) * RATE_HZ)

    def key() -> Samples:
        size = round(0.03 * RATE_HZ)
        stroke = np.zeros(travel + size)
        for start, gain in ((0, 1.0), (travel, 0.4)):
            burst = band_noise(rng, size, centre_hz * rng.uniform(0.85, 1.2), 0.7)
            stroke[start : start + size] += gain * burst * decay(size, half_life_s)
        return stroke

    return scatter(rng, num_samples, (0.09, rng.uniform(0.2, 0.45)), key)


def siren(rng: np.random.Generator, num_samples: int) -> Samples:
    """A siren: harmonics of a pitch that wails (sweeps) or alternates between two notes."""
    low_hz = rng.uniform(400.0, 800.0)
    octaves = rng.uniform(0.3, 1.0)
    wave = sine(rng.uniform(0.3, 2.5), num_samples, rng.uniform(0.0, 6.28))
    if rng.random() < 0.4:
        wave = np.tanh(12.0 * wave)
    pitch = low_hz * 2.0 ** (octaves * (0.5 + 0.5 * wave))
    sound = np.zeros(num_samples)
    for harmonic in range(1, 6):
        audible = harmonic * pitch < 0.45 * RATE_HZ
        sound += audible * rng.uniform(0.5, 1.0) / harmonic * sine(harmonic * pitch, num_samples)
    return sound


def drum(rng: np.random.Generator, num_samples: int) -> Samples:
    """A drum: a low tone that falls in pitch under a burst of noise, in a steady beat."""
    base_hz = rng.uniform(55.0, 180.0)
    half_life_s = rng.uniform(0.03, 0.1)
    snare = rng.uniform(0.05, 0.8)
    beat_s = rng.uniform(0.2, 0.55)

    def stroke() -> Samples:
        size = round(0.5 * RATE_HZ)
        pitch = base_hz * (1.0 + 1.5 * decay(size, 0.015))
        skin = sine(pitch, size) * decay(size, half_life_s)
        return skin + snare * 0.3 * coloured_noise(rng, size, 0.0) * decay(size, half_life_s / 2)

    return scatter(rng, num_samples, (beat_s * 0.98, beat_s * 1.02), stroke)


def wind(rng: np.random.Generator, num_samples: int) -> Samples:
    """Wind: brown noise in gusts, with a whistling band that comes and goes."""
    gusts = 0.15 + slow_curve(rng, num_samples, rng.uniform(0.8, 2.0)) ** 2
    whistle = slow_curve(rng, num_samples, rng.uniform(0.8, 2.0)) ** 3
    low = coloured_noise(rng, num_samples, rng.uniform(1.2, 2.0))
    high = band_noise(rng, num_samples, rng.uniform(350.0, 1200.0), 0.15)
    return low * gusts + rng.uniform(0.3, 1.0) * high * whistle


def bubbles(rng: np.random.Generator, num_samples: int) -> Samples:
    """Bubbles: short tones whose pitch rises while they fade, as air comes to the surface."""
    centre_hz = rng.uniform(500.0, 1500.0)

    def bubble() -> Samples:
        size = round(rng.uniform(0.03, 0.09) * RATE_HZ)
        start_hz = centre_hz * 2.0 ** rng.uniform(-0.7, 0.7)
        rise = np.linspace(0.0, 1.0, size) ** 2
        return soften(sine(start_hz * 2.0 ** (rng.uniform(0.3, 0.9) * rise), size), 0.006)

    return scatter(rng, num_samples, (0.01, rng.uniform(0.06, 0.2)), bubble)


def pluck(rng: np.random.Generator, num_samples: int) -> Samples:
    """A plucked string: harmonics of notes of a scale, the higher the shorter."""
    base_hz = rng.uniform(110.0, 330.0)
    ring_s = rng.uniform(0.15, 0.4)
    stiffness = rng.uniform(0.0, 4e-4)
    order = np.arange(1, 25)
    ratios = order * np.sqrt(1.0 + stiffness * order**2)
    scale = 2.0 ** (np.array([0, 2, 4, 7, 9, 12, 14, 16]) / 12.0)
    return scatter(
        rng,
        num_samples,
        (0.18, rng.uniform(0.25, 0.6)),
        lambda: draw_modes(rng, ratios, base_hz * float(rng.choice(scale)), ring_s),
    )


EVENTS: dict[str, Callable[[np.random.Generator, int], Samples]] = {
    "bell": bell,
    "birds": birds,
    "bubbles": bubbles,
    "clicks": clicks,
    "drum": drum,
    "engine": engine,
    "pluck": pluck,
    "rain": rain,
    "siren": siren,
    "wind": wind,
}
