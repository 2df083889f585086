"""What all formats have in common: recognition by content, compression, options, identity, laziness."""

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard

from fairlead.trace.clients import RULES
from fairlead.trace.model import TraceError
from fairlead.trace.reading import READERS, read_trace

HASHED: list[dict[str, Any]] = [
    {"timestamp": i, "input_length": 600, "output_length": 5, "hash_ids": [0, i]} for i in range(20)
]
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
DUMPED = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
IDS = list(range(37))
CALL = {"t": 0, "in": 130, "out": 5, "hash_ids": [1, 2]}

BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": TALK[:1], "max_tokens": 9}
SPAN = {
    "startTimeUnixNano": "1714564800000000000",
    "endTimeUnixNano": "1714564801000000000",
    "attributes": [
        {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "30"}},
        {"key": "gen_ai.usage.output_tokens", "value": {"intValue": 5}},
    ],
}


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


FILES = {
    "mooncake": lines(HASHED),
    "llmservingsim": lines([row | {"timestamp": row["timestamp"] + 0.5, "hash_ids": IDS} for row in HASHED]),
    "qwen-bailian": lines([
        row | {"chat_id": i, "parent_chat_id": i - 1 if i % 2 else -1, "type": "text", "hash_ids": IDS}
        for i, row in enumerate(HASHED)
    ]),
    "burstgpt": f"{BURST}\n5,ChatGPT,472,18,490,API log\n".encode(),
    "litellm": b"startTime,endTime,prompt_tokens,completion_tokens,api_key\n2024-05-01 12:00:00,,30,5,k\n",
    "otel-genai": json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [SPAN]}]}]}).encode(),
    "openai-batch": lines([{"custom_id": "1", "method": "POST", "url": CHAT, "body": BODY}]),
    "vllm-custom": lines([{"prompt": "Hi there, how are you?", "output_tokens": 5}]),
    "guidellm": lines([{"prompt": "Hi there", "prompt_tokens_count": 3, "output_tokens_count": 5}]),
    "aiperf": lines([{"session_id": "s", "turns": [{"text": "Hi"}, {"text": "there", "output_length": 5}]}]),
    "kv-cache-tester": json.dumps({"block_size": 64, "requests": [CALL], "tool_tokens": 64}).encode(),
    "azure": b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n",
    "vtc-arena": b"req_id,client_id,arrival_s,input_tokens,output_tokens\n0,13,0.0,13,199\n",
    "vllm-multi-turn": json.dumps([{"id": "a", "messages": TALK}]).encode(),
    "sharegpt": json.dumps([{"id": "a", "conversations": DUMPED}]).encode(),
    "tau-bench": json.dumps([{"task_id": 0, "reward": 0.0, "info": {}, "traj": TALK, "trial": 1}]).encode(),
}  # fmt: skip
FOLDERS = {
    "servegen": {
        "m/chunk-0-trace.csv": b"0,1,1,Gamma,1,1\n",
        "m/chunk-0-dataset.json": json.dumps(
            {"0": {"input_tokens": "{9: 1}", "output_tokens": "{9: 1}"}}
        ).encode(),
    },
    "kv-cache-tester": {
        "a.json": FILES["kv-cache-tester"],
        "b/c.json": FILES["kv-cache-tester"],
        "LICENSE": b"free",
    },
}


def folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def tar(files: dict[str, bytes]) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return whole.getvalue()


def test_every_format_has_an_example_here() -> None:
    ours = set(READERS) & (FILES.keys() | FOLDERS.keys())
    assert ours == FILES.keys() | FOLDERS.keys()
    assert all(READERS[name].name == name and READERS[name].summary for name in READERS)


@pytest.mark.parametrize("form", FILES)
def test_a_file_is_recognised_by_content_compressed_or_not(form: str, tmp_path: Path) -> None:
    (tmp_path / "plain.bin").write_bytes(FILES[form])
    (tmp_path / "packed.bin").write_bytes(gzip.compress(FILES[form]))
    plain, packed = read_trace(tmp_path / "plain.bin"), read_trace(tmp_path / "packed.bin")
    named = read_trace(tmp_path / "plain.bin", form=form)
    if form == "kv-cache-tester":  # a session is called after its file
        assert plain.requests == packed.requests
    else:
        assert list(plain.sessions()) == list(packed.sessions()) == list(named.sessions())
    assert plain.identity == named.identity


@pytest.mark.parametrize("form", FILES)
def test_only_its_own_reader_takes_a_file(form: str, tmp_path: Path) -> None:
    from fairlead.trace.files import sample

    (tmp_path / "t").write_bytes(FILES[form])
    assert [name for name, reader in READERS.items() if reader.sniff(sample(tmp_path / "t"))] == [form]


@pytest.mark.parametrize("form", FOLDERS)
def test_a_folder_and_an_archive_are_recognised(form: str, tmp_path: Path) -> None:
    (tmp_path / "t.tgz").write_bytes(gzip.compress(tar(FOLDERS[form])))
    one = read_trace(folder(tmp_path / "t", FOLDERS[form]))
    other = read_trace(tmp_path / "t.tgz")
    assert list(one.sessions()) == list(other.sessions())
    assert one.requests > 0


@pytest.mark.parametrize("form", FILES)
def test_sessions_can_be_walked_again_and_in_parallel(form: str, tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(FILES[form])
    trace = read_trace(tmp_path / "t")
    first, second = trace.sessions(), trace.sessions()
    assert all(a == b for a, b in zip(first, second, strict=True))
    assert list(trace.sessions()) == list(read_trace(tmp_path / "t").sessions())


def test_turns_are_a_sequence(tmp_path: Path) -> None:
    calls = [{**CALL, "in": 64 * n, "hash_ids": list(range(n))} for n in range(1, 6)]
    (tmp_path / "t").write_text(json.dumps({"block_size": 64, "requests": calls}))
    (only,) = read_trace(tmp_path / "t").sessions()
    turns = list(only.turns)
    assert [only.turns[i] for i in range(5)] == turns
    assert only.turns[-1] == turns[-1]
    assert only.turns == turns
    assert only.turns != turns[:4]
    assert only.turns[1:3] == turns[1:3]
    assert list(only.turns[::-2]) == turns[::-2]
    with pytest.raises(IndexError):
        only.turns[5]


def test_identity_names_content_and_options(tmp_path: Path) -> None:
    for name, rows in (("a", HASHED), ("b", HASHED), ("c", HASHED[:-1])):
        (tmp_path / name).write_bytes(lines(rows))
    a, b, c = (read_trace(tmp_path / name) for name in "abc")
    assert a.identity == b.identity != c.identity
    assert read_trace(tmp_path / "a", max_prompt_tokens=9999).identity == a.identity  # nothing was left out
    assert read_trace(tmp_path / "a", time_unit="s").identity != a.identity


def test_an_unknown_format_says_what_was_seen_and_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("to be, or not to be\n")
    with pytest.raises(TraceError) as refused:
        read_trace(tmp_path / "t")
    assert "starts with 'to be, or not to be" in str(refused.value)
    assert all(f"\n  {name}: " in str(refused.value) for name in READERS)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="does not exist"):
        read_trace(tmp_path / "nothing")
    (tmp_path / "empty").write_bytes(b"\n \n")
    with pytest.raises(TraceError, match="is empty"):
        read_trace(tmp_path / "empty")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(TraceError, match="holds no files"):
        read_trace(tmp_path / "hollow")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(FILES["mooncake"])[:60])
    with pytest.raises(TraceError, match="is the file complete"):
        read_trace(tmp_path / "cut.gz")
    (tmp_path / "cut.tar").write_bytes(tar(FOLDERS["kv-cache-tester"])[:700])
    with pytest.raises(TraceError, match="is the file complete"):
        read_trace(tmp_path / "cut.tar")


def test_wrong_names_come_with_the_right_ones(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(FILES["mooncake"])
    with pytest.raises(TraceError, match="did you mean 'mooncake'"):
        read_trace(tmp_path / "t", form="moncake")
    with pytest.raises(TraceError, match="did you mean 'spread'"):
        read_trace(tmp_path / "t", spred="off")
    with pytest.raises(TraceError, match="time_unit"):
        read_trace(tmp_path / "t", time_unit="h")
    with pytest.raises(TraceError, match="TIMESTAMP is missing"):
        read_trace(tmp_path / "t", form="azure")


def test_zstd_files_are_read_and_damage_is_named(tmp_path: Path) -> None:
    packed = zstandard.ZstdCompressor().compress(FILES["mooncake"])
    (tmp_path / "t.zst").write_bytes(packed)
    assert read_trace(tmp_path / "t.zst").requests == 20
    (tmp_path / "two.zst").write_bytes(packed + packed)
    assert read_trace(tmp_path / "two.zst").requests == 40
    (tmp_path / "bad.zst").write_bytes(packed[:10] + b"\xff" * 40)
    with pytest.raises(TraceError, match="is the file complete"):
        read_trace(tmp_path / "bad.zst")
    (tmp_path / "cut.zst").write_bytes(packed[:-5])
    with pytest.raises(TraceError, match="ends too early"):
        read_trace(tmp_path / "cut.zst")


def test_long_requests_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        {**row, "input_length": 512 * (i + 1), "hash_ids": list(range(i + 1))} for i, row in enumerate(HASHED)
    ]
    (tmp_path / "t").write_bytes(lines(rows))
    trace = read_trace(tmp_path / "t", max_prompt_tokens=5120)
    assert trace.requests == 10
    assert [repair.count for repair in trace.repairs] == [10]
    assert read_trace(tmp_path / "t", max_total_tokens=5120).requests == 9


def test_the_page_on_traces_names_every_format_and_option() -> None:
    page = (Path(__file__).parents[2] / "docs/traces.md").read_text()
    for name in FILES.keys() | FOLDERS.keys():
        assert f"| `{name}` |" in page
        assert all(f"`{param.name}`" in page for param in READERS[name].params)
    assert all(f"| `{rule}` |" in page for rule in RULES)
