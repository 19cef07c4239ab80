"""Quantizer: encode, decode, files, identity, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from spear.errors import CheckpointError, ConfigError, DataError, TokenError
from spear.mvq import Quantizer
from tests.mvq.mvq_frames import correlated_frames, random_centers, relative_error


@pytest.fixture(scope="module")
def quantizer() -> Quantizer:
    generator = torch.Generator().manual_seed(1)
    centers = random_centers(6, 32, 16)
    return Quantizer(
        centers,
        classifier_weight=centers.view(192, 16),
        classifier_bias=torch.randn(192, generator=generator),
        channel_mean=torch.randn(16, generator=generator),
        channel_scale=torch.rand(16, generator=generator) + 0.5,
        metadata={"teacher": json.dumps({"name": "wavlm", "dim": 16})},
    )


@pytest.fixture(scope="module")
def frames() -> Tensor:
    frames = correlated_frames(300, 16)
    return (frames - frames.mean(dim=0)) / frames.std()


def test_decode_is_the_sum_of_centres_in_the_teachers_space(quantizer: Quantizer) -> None:
    codes = torch.randint(32, (2, 5, 6), dtype=torch.uint8)
    expected = torch.zeros(2, 5, 16)
    for n in range(6):
        expected += quantizer.centers[n][codes[..., n].long()]
    expected = expected * quantizer.channel_scale + quantizer.channel_mean
    torch.testing.assert_close(quantizer.decode(codes), expected)


def test_encode_keeps_leading_shape_and_gives_bytes(quantizer: Quantizer, frames: Tensor) -> None:
    codes = quantizer.encode(frames.view(3, 100, 16))
    assert codes.shape == (3, 100, 6)
    assert codes.dtype == torch.uint8
    assert torch.equal(codes.view(300, 6), quantizer(frames))
    assert quantizer.encode(frames[0]).shape == (6,)
    assert quantizer.encode(frames[:0]).shape == (0, 6)
    assert quantizer.decode(codes[:, :0]).shape == (3, 0, 16)


def test_encode_undoes_decode_where_codebooks_are_orthogonal() -> None:
    centers = torch.zeros(4, 5, 20)
    for n in range(4):
        centers[n, :, 5 * n : 5 * n + 5] = torch.randn(5, 5)
    quantizer = Quantizer(centers, channel_mean=torch.full((20,), 3.0))
    codes = torch.randint(5, (40, 4), dtype=torch.uint8)
    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)


@pytest.mark.parametrize("with_classifiers", [True, False])
def test_error_falls_with_passes(
    quantizer: Quantizer, frames: Tensor, with_classifiers: bool
) -> None:
    if not with_classifiers:
        quantizer = Quantizer(
            quantizer.centers,
            channel_mean=quantizer.channel_mean,
            channel_scale=quantizer.channel_scale,
        )
    errors = [
        relative_error(quantizer, frames, quantizer.encode(frames, num_passes=p)) for p in range(5)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < errors[0]


@pytest.mark.parametrize("dim", [16, 96])
def test_tokens_do_not_depend_on_batch_mates(dim: int) -> None:
    quantizer = Quantizer(random_centers(5, 64, dim))
    frames = torch.randn(520, dim, generator=torch.Generator().manual_seed(0))
    whole = quantizer.encode(frames)
    order = torch.randperm(520, generator=torch.Generator().manual_seed(1))
    assert torch.equal(quantizer.encode(frames[order]), whole[order])
    for size in (1, 7, 255, 257):
        assert torch.equal(quantizer.encode(frames[:size]), whole[:size])
    assert torch.equal(quantizer.encode(frames[511:]), whole[511:])


@pytest.mark.parametrize("num_threads", [1, 2])
def test_scores_are_equal_to_the_bit_wherever_a_frame_stands(
    num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matrix product may round a row differently in an input of another length: encode must
    always form it in the same shape. Equal tokens alone would show that only at near ties."""
    seen: list[Tensor] = []

    def record(table: object, unary: Tensor, guess: object, **options: object) -> Tensor:
        seen.append(unary)
        return torch.zeros(len(unary), 6, dtype=torch.long)

    monkeypatch.setattr("spear.mvq.quantizers.quantizer.search", record)
    quantizer = Quantizer(random_centers(6, 64, 200))
    frames = torch.randn(300, 200, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for part in (frames, frames[100:107], frames[299:], frames.flip(0)):
            quantizer.encode(part)
    finally:
        torch.set_num_threads(before)
    whole = seen[0]
    assert torch.equal(seen[1], whole[100:107])
    assert torch.equal(seen[2], whole[299:])
    assert torch.equal(seen[3], whole.flip(0))


def test_small_batches_give_as_good_tokens(quantizer: Quantizer, frames: Tensor) -> None:
    usual = relative_error(quantizer, frames, quantizer.encode(frames))
    small = relative_error(quantizer, frames, quantizer.encode(frames, max_batch_frames=10))
    assert small == pytest.approx(usual, rel=1e-3)


def test_products_in_bfloat16_give_nearly_as_good_tokens(
    quantizer: Quantizer, frames: Tensor
) -> None:
    exact = quantizer.encode(frames)
    rounded = quantizer.encode(frames, product_dtype=torch.bfloat16)
    assert not torch.equal(exact, rounded)
    errors = [relative_error(quantizer, frames, codes) for codes in (exact, rounded)]
    assert errors[1] == pytest.approx(errors[0], rel=0.02)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 10), st.integers(2, 40), st.integers(1, 12)),
    shape=st.lists(st.integers(0, 5), min_size=0, max_size=3),
    seed=st.integers(0, 2**31),
)
def test_frames_of_any_shape_become_tokens_and_frames_again(
    sizes: tuple[int, int, int], shape: list[int], seed: int
) -> None:
    quantizer = Quantizer(random_centers(*sizes, seed % 1000))
    x = torch.randn(*shape, sizes[2], generator=torch.Generator().manual_seed(seed))
    codes = quantizer.encode(x)
    assert codes.shape == (*shape, sizes[0])
    assert codes.dtype == torch.uint8
    decoded = quantizer.decode(codes)
    assert decoded.shape == x.shape
    flat = quantizer.encode(x.reshape(-1, sizes[2]))
    assert torch.equal(flat.view(codes.shape), codes)
    # No code of any single codebook would have been better.
    errors = (x - decoded).square().sum(dim=-1)
    for codebook in range(sizes[0]):
        other = codes.clone()
        other[..., codebook] = (other[..., codebook] + 1) % sizes[1]
        assert ((x - quantizer.decode(other)).square().sum(dim=-1) >= errors - 1e-3).all()


MEMORY_SCRIPT = """
import torch
from pathlib import Path
from spear.mvq import Quantizer

def peak():  # in MiB; getrusage would begin with the peak of the process that started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

torch.manual_seed(0)
quantizer = Quantizer(torch.randn(16, 256, 1536) / 4, classifier_weight=torch.randn(4096, 1536),
                      classifier_bias=torch.zeros(4096))
frames = torch.randn(6000, 1536)
Quantizer(torch.randn(2, 3, 4)).encode(torch.randn(5, 4))  # what the compiler takes, once
before = peak()
quantizer.encode(frames, num_passes=1)
print(round(peak() - before))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak of memory")
def test_memory_of_sixteen_codebooks_stays_below_a_gibibyte() -> None:
    """Beyond weights and input: the table of products, and what encoding takes."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT], check=True, capture_output=True, text=True
    )
    assert 64 <= int(done.stdout) < 1024


def test_half_precision_frames_are_taken(quantizer: Quantizer, frames: Tensor) -> None:
    half = frames.half()
    assert torch.equal(quantizer.encode(half), quantizer.encode(half.float()))


@pytest.mark.parametrize(("num_codebooks", "codebook_size"), [(1, 2), (3, 256), (13, 5), (64, 3)])
def test_any_allowed_size_works(num_codebooks: int, codebook_size: int, tmp_path: Path) -> None:
    quantizer = Quantizer(random_centers(num_codebooks, codebook_size, 8))
    codes = quantizer.encode(torch.randn(20, 8))
    assert codes.shape == (20, num_codebooks)
    assert int(codes.max()) < codebook_size
    quantizer.save(tmp_path / "q.safetensors")
    loaded = Quantizer.load(tmp_path / "q.safetensors")
    assert (loaded.num_codebooks, loaded.codebook_size, loaded.dim) == (
        num_codebooks,
        codebook_size,
        8,
    )


def test_save_and_load_keep_everything(
    quantizer: Quantizer, frames: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "deep" / "q.safetensors"
    quantizer.save(path)
    loaded = Quantizer.load(path)
    assert loaded.id == quantizer.id
    assert loaded.metadata == quantizer.metadata
    assert torch.equal(loaded.encode(frames), quantizer.encode(frames))
    assert torch.equal(loaded.decode(loaded.encode(frames)), quantizer.decode(loaded(frames)))
    assert [file.name for file in path.parent.iterdir()] == ["q.safetensors"]


def test_the_same_quantiser_is_the_same_file_in_every_process(
    quantizer: Quantizer, tmp_path: Path
) -> None:
    """The library underneath orders metadata by a hash that each process seeds anew."""
    many = {f"key {i}": str(i) for i in range(20)}
    path = tmp_path / "q.safetensors"
    Quantizer(quantizer.centers, metadata=many).save(path)
    script = (
        "import sys; from spear.mvq import Quantizer; "
        "q = Quantizer.load(sys.argv[1]); q.save(sys.argv[2])"
    )
    other = tmp_path / "other.safetensors"
    subprocess.run([sys.executable, "-c", script, path, other], check=True)
    assert other.read_bytes() == path.read_bytes()
    assert Quantizer.load(other).metadata == many


def test_id_follows_every_tensor(quantizer: Quantizer) -> None:
    ids = {quantizer.id}
    for name, _ in quantizer.named_buffers():
        changed = Quantizer(**dict(quantizer.named_buffers()))
        assert changed.id == quantizer.id
        changed.get_buffer(name).view(-1)[0] += 0.25
        ids.add(changed.id)
    assert len(ids) == 6
    assert all(len(one) == 16 and int(one, 16) >= 0 for one in ids)


def test_table_follows_changed_centres(frames: Tensor) -> None:
    quantizer = Quantizer(random_centers(3, 8, 16))
    other = Quantizer(random_centers(3, 8, 16, seed=5))
    quantizer.encode(frames)
    quantizer.load_state_dict(other.state_dict())
    assert torch.equal(quantizer.encode(frames), other.encode(frames))


def test_wrong_width_is_one_clear_line(quantizer: Quantizer) -> None:
    with pytest.raises(ConfigError) as caught:
        quantizer.encode(torch.zeros(4, 128))
    message = str(caught.value)
    assert "quantiser of width 16 (trained on wavlm) was given frames of width 128" in message
    assert "\n" not in message


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_not_finite_are_refused(quantizer: Quantizer, bad: float) -> None:
    frames = torch.zeros(300, 16)
    frames[270, 3] = bad
    with pytest.raises(DataError, match=r"1 of \d+ frames.*NaN"):
        quantizer.encode(frames)


def test_integer_frames_and_bad_arguments_are_refused(quantizer: Quantizer) -> None:
    with pytest.raises(ConfigError, match="floating"):
        quantizer.encode(torch.zeros(4, 16, dtype=torch.long))
    with pytest.raises(ConfigError, match="num_passes"):
        quantizer.encode(torch.zeros(4, 16), num_passes=-1)
    with pytest.raises(ConfigError, match="beam_width"):
        quantizer.encode(torch.zeros(4, 16), beam_width=1)


def test_tokens_of_another_quantiser_are_refused(quantizer: Quantizer) -> None:
    with pytest.raises(TokenError, match=r"6 codebooks.*another quantiser"):
        quantizer.decode(torch.zeros(4, 8, dtype=torch.uint8))
    with pytest.raises(TokenError, match="0 to 31"):
        quantizer.decode(torch.full((4, 6), 32, dtype=torch.uint8))
    with pytest.raises(TokenError, match="integers"):
        quantizer.decode(torch.zeros(4, 6))


@pytest.mark.parametrize("shape", [(65, 4, 8), (2, 257, 8), (2, 1, 8), (4, 8)])
def test_impossible_sizes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError):
        Quantizer(torch.zeros(shape))


def test_parts_that_do_not_fit_are_refused() -> None:
    centers = random_centers(2, 4, 8)
    with pytest.raises(ConfigError, match="go together"):
        Quantizer(centers, classifier_bias=torch.zeros(8))
    with pytest.raises(ConfigError, match="channel_mean"):
        Quantizer(centers, channel_mean=torch.zeros(7))
    with pytest.raises(ConfigError, match="above 0"):
        Quantizer(centers, channel_scale=torch.zeros(8))
    with pytest.raises(ConfigError, match="NaN"):
        Quantizer(centers * float("nan"))


def test_broken_files_are_named(quantizer: Quantizer, tmp_path: Path) -> None:
    path = tmp_path / "q.safetensors"
    with pytest.raises(CheckpointError, match="no quantiser at"):
        Quantizer.load(path)
    quantizer.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        Quantizer.load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="no quantiser of format version"):
        Quantizer.load(path)


def test_a_flipped_weight_is_noticed(quantizer: Quantizer, tmp_path: Path) -> None:
    path = tmp_path / "q.safetensors"
    quantizer.save(path)
    content = bytearray(path.read_bytes())
    content[-6] ^= 0x10
    path.write_bytes(content)
    assert len(load_file(path)) == 5  # still a readable file
    with pytest.raises(CheckpointError, match=r"broken|NaN"):
        Quantizer.load(path)


def test_a_failed_save_leaves_the_old_file(
    quantizer: Quantizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "q.safetensors"
    quantizer.save(path)
    before = path.read_bytes()

    def fail(partial: Path, content: bytes) -> int:
        with open(partial, "wb") as stream:
            stream.write(content[:100])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        Quantizer(random_centers(2, 4, 8)).save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
