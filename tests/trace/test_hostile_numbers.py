"""No number in a trace file is believed: it is read as it can be meant, left out and counted, or an error."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead.trace.faults import MAX_TIME_US, MAX_TOKENS
from fairlead.trace.model import TraceError
from fairlead.trace.reading import read_trace
from tests.trace.test_read_formats import FILES, FOLDERS

HOSTILE = (
    b"-1", b"-99999999999999999999", b"0", b"1e400", b"-1e400", b"1e308", b"1e-400", b"NaN", b"-Infinity",
    b"Infinity", b"9" * 5_000, b"9223372036854775808", b"18446744073709551616", b"2147483648", b"true",
    b"null", b'"7"', b"[1]", b"",
)  # fmt: skip
NUMBER = re.compile(rb"(?<![\w.])-?\d+(?:\.\d+)?")


def variants(content: bytes) -> Iterator[bytes]:
    """The content with each of its first numbers replaced by each hostile one."""
    for found, said in itertools.product(itertools.islice(NUMBER.finditer(content), 12), HOSTILE):
        yield content[: found.start()] + said + content[found.end() :]


def read_or_refuse(path: Path, form: str, said: bytes) -> bool:
    """Read the trace and hold it to what every trace promises; False where it is refused in words."""
    refused = ""
    try:
        trace = read_trace(path, form=form)
    except TraceError as error:
        refused = str(error)
    if refused:
        assert path.name in refused, said[:200]
        assert len(refused) < 1_000, said[:200]
        return False
    for session in trace.sessions():
        assert 0 <= session.at <= MAX_TIME_US, said[:200]
        for number, turn in enumerate(session.turns):
            assert 1 <= turn.prompt_tokens <= MAX_TOKENS, said[:200]
            assert 1 <= turn.output_tokens <= MAX_TOKENS, said[:200]
            assert 0 <= turn.delay_us <= MAX_TIME_US, said[:200]
            assert -1 <= turn.after < number, said[:200]
    return True


@pytest.mark.parametrize("form", sorted(FILES))
def test_a_file_with_a_hostile_number(form: str, tmp_path: Path) -> None:
    path, refused, told = tmp_path / "trace", 0, 0
    for said in variants(FILES[form]):
        path.write_bytes(said)
        told += 1
        refused += not read_or_refuse(path, form, said)
    if form in {"mooncake", "llmservingsim", "azure", "vtc-arena", "kv-cache-tester"}:
        assert 0 < refused < told


@pytest.mark.parametrize("form", sorted(FOLDERS))
def test_a_folder_with_a_hostile_number(form: str, tmp_path: Path) -> None:
    refused = 0
    for name, content in FOLDERS[form].items():
        for number, said in enumerate(variants(content)):
            root = tmp_path / f"{name.replace('/', '-')}-{number}"
            for other, plain in FOLDERS[form].items():
                path = root / other
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(said if other == name else plain)
            refused += not read_or_refuse(root, form, said)
    assert refused
