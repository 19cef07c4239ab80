import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spear.data.formats.tokens import ShardTokens, TokenSidecar, decode_tokens, token_dtype
from spear.errors import TokenError

SIDECAR = TokenSidecar(
    teacher="wavlm",
    layer=21,
    frame_rate_hz=50.0,
    weights_sha256="ab" * 32,
    quantizer_id="0123456789abcdef",
    quantizer_sha256="cd" * 32,
    num_codebooks=16,
    codebook_size=256,
    teacher_identity={"name": "wavlm", "path": "somewhere"},
    shards={0: ShardTokens(3, 120, "ef" * 32), 1: ShardTokens(2, 70, "01" * 32)},
)


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    SIDECAR.save(tmp_path / "wavlm_tokens.json")
    assert TokenSidecar.load(tmp_path / "wavlm_tokens.json") == SIDECAR
    content = json.loads((tmp_path / "wavlm_tokens.json").read_text())
    assert content["format_version"] == 1
    assert list(content["shards"]) == ["000000", "000001"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("teacher", "hubert"),
        ("layer", 9),
        ("frame_rate_hz", 25.0),
        ("weights_sha256", "00" * 32),
        ("quantizer_id", "f" * 16),
        ("quantizer_sha256", "00" * 32),
        ("num_codebooks", 8),
        ("codebook_size", 128),
    ],
)
def test_check_says_which_field_differs(name: str, wanted: object) -> None:
    asked = {name: getattr(SIDECAR, name) for name in ("teacher", "layer", "quantizer_id")}
    SIDECAR.check("folder", **asked)
    with pytest.raises(TokenError) as raised:
        SIDECAR.check("folder", **{**asked, name: wanted})
    message = str(raised.value)
    assert message.startswith("folder: ") and "\n" not in message
    assert f"{name} is {getattr(SIDECAR, name)!r} where the run asks for {wanted!r}" in message
    assert message.count("where the run asks for") == 1


def test_check_lists_every_difference() -> None:
    with pytest.raises(TokenError, match=r"layer is 21 .* 9; num_codebooks is 16 .* 8;"):
        SIDECAR.check("folder", layer=9, num_codebooks=8)


def test_where_the_weights_lie_makes_no_other_tokens() -> None:
    moved = replace(SIDECAR, teacher_identity={"path": "elsewhere"}, shards={})
    assert SIDECAR.differences(moved) == []
    assert SIDECAR.differences(replace(moved, layer=1, quantizer_id="x")) == [
        "layer",
        "quantizer_id",
    ]


def test_broken_sidecars_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "wavlm_tokens.json"
    with pytest.raises(TokenError, match="extract-tokens"):
        TokenSidecar.load(path)
    SIDECAR.save(path)
    content = json.loads(path.read_text())
    without_layer = {key: value for key, value in content.items() if key != "layer"}
    broken = {
        "not a readable sidecar": "{",
        "no mapping": "[]",
        "format version 2": json.dumps({**content, "format_version": 2}),
        "layer": json.dumps(without_layer),
        "surprise": json.dumps({**content, "surprise": 1}),
        "not a sidecar of this version": json.dumps({**content, "shards": {"0": {"x": 1}}}),
    }
    for message, text in broken.items():
        path.write_text(text)
        with pytest.raises(TokenError, match=message):
            TokenSidecar.load(path)


def test_arrays_that_are_no_tokens_are_refused() -> None:
    def encoded(array: np.ndarray, **options: bool) -> bytes:
        stream = io.BytesIO()
        np.save(stream, array, **options)
        return stream.getvalue()

    good = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for tokens in (good, good.astype(np.uint16)):
        found = decode_tokens(encoded(tokens), "x")
        assert found.dtype == tokens.dtype
        np.testing.assert_array_equal(found, tokens)
    for wrong in (good.astype(np.int64), good[0], good.astype(np.float32)):
        with pytest.raises(TokenError, match="cut 7: expected uint8"):
            decode_tokens(encoded(wrong), "cut 7")
    for data in (b"", b"nonsense", encoded(good)[:-2]):
        with pytest.raises(TokenError, match="cut 7: tokens cannot be decoded"):
            decode_tokens(data, "cut 7")


def test_nothing_is_unpickled() -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(TokenError, match="cannot be decoded"):
        decode_tokens(stream.getvalue(), "x")


def test_the_codebook_size_says_how_many_bytes_a_token_has() -> None:
    sizes = {2: 1, 256: 1, 257: 2, 65536: 2}
    assert {size: token_dtype(size).itemsize for size in sizes} == sizes
