"""Chats become text as transformers and vLLM make it; what they would do otherwise is admitted."""

from pathlib import Path
from typing import Any

import pytest

from fairlead.gateway.chat_template import ChatTemplate, load_template
from fairlead.gateway.tokenizing import UnknownPromptError

EACH = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"


def render(source: str, *messages: dict[str, Any], **more: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render({"messages": list(messages)} | more)


def message(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content} | more


def test_a_template_that_prints_content_gets_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}, "c"]
    found = render(EACH, message("user", parts), message("user", " x "), message("assistant", None))
    assert found == "[user:a\nb\nc][user: x ][assistant:]"


def test_a_template_that_walks_over_content_gets_parts_but_tool_results_stay_text() -> None:
    source = (
        "{% for m in messages %}[{% if m.content is string %}={{ m.content }}"
        "{% else %}{% for p in m.content %}{{ p.type }}:{{ p.text }};{% endfor %}{% endif %}]{% endfor %}"
    )
    tool = message("tool", [{"type": "text", "text": "1"}, {"type": "text", "text": "2"}], tool_call_id="x")
    assert render(source, message("user", "hi"), tool) == "[text:hi;][=1\n2]"


IN_LOOP = "{% for m in messages %}BODY{% endfor %}"
PARTS = "{% for p in m.content %}{% endfor %}"
MACRO = "{% macro f(x) %}{% for p in x %}{% endfor %}{% endmacro %}"


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        (EACH, False),
        (IN_LOOP.replace("BODY", "{% for p in m['content'] %}{% endfor %}"), True),
        (IN_LOOP.replace("BODY", "{% for p in m.content | list %}{% endfor %}"), True),
        ("{% for m in messages[1:] %}{% for p in m.content %}{% endfor %}{% endfor %}", True),
        ("{% set q = messages %}{% set r = q[1:] %}{% for m in r %}" + PARTS + "{% endfor %}", True),
        (IN_LOOP.replace("BODY", "{% set content = m.content %}{% for p in content %}{% endfor %}"), True),
        (IN_LOOP.replace("BODY", "{% for p in m.tool_calls %}{% endfor %}"), False),
        ("{% for m in tools %}{% for p in m.content %}{% endfor %}{% endfor %}", False),
        (MACRO + IN_LOOP.replace("BODY", "{{ f(m.content) }}"), True),
        (MACRO + IN_LOOP.replace("BODY", "{{ f(x=m.content) }}"), True),
        (MACRO + IN_LOOP.replace("BODY", "{{ f(m.role) }}"), False),
        ("{% macro f(content) %}{% for p in content %}{% endfor %}{% endmacro %}{{ f(messages) }}", False),
    ],
)  # fmt: skip
def test_whether_a_template_walks_over_content_is_read_from_it(source: str, parts: bool) -> None:
    assert ChatTemplate(source, {})._parts is parts


def test_what_else_templates_are_given() -> None:
    source = (
        "{{ bos_token }}{{ unk_token }}|{{ add_generation_prompt }}|{{ documents }}|{{ enable_thinking }}|"
        "{{ reasoning_effort }}|{{ tools | tojson }}|{{ colour }}"
    )
    assert render(source) == "<s>|True|None|||null|"
    tool = {"function": {"parameters": {"b": 1, "a": "é<"}, "name": "f"}, "type": "function"}
    found = render(
        source,
        tools=[tool],
        reasoning_effort="none",
        add_generation_prompt=False,
        chat_template_kwargs={"colour": "red"},
    )
    shown = '{"name": "f", "description": null, "parameters": {"b": 1, "a": "é<"}}'
    shown = f'[{{"type": "function", "function": {shown}}}]'
    assert found == f"<s>|False|None|False|none|{shown}|red"
    strict = {"type": "function", "function": {"name": "f", "strict": True}}
    assert '"parameters": null, "strict": true' in render(source, tools=[strict])


def test_tool_calls_have_objects_as_arguments() -> None:
    source = (
        "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}{% endfor %}"
    )
    calls = [
        {"id": str(n), "type": "function", "function": {"name": "f", "arguments": arguments}}
        for n, arguments in enumerate(['{"x": 1}', "nonsense", "[]", "", None, {"y": 2}])
    ]
    found = render(source, message("assistant", None, tool_calls=calls))
    assert found == "".join(
        f'{{"arguments": {arguments}, "name": "f"}}'
        for arguments in ('{"x": 1}', "{}", "{}", "{}", "{}", '{"y": 2}')
    )


def test_developers_are_systems_where_the_template_does_not_know_them() -> None:
    talk = [message("system", "a"), message("user", "b"), message("developer", "c"), message("system", "")]
    assert render(EACH, *talk) == "[system:a\n\nc][user:b]"
    assert render(EACH, message("developer", "a"), message("user", "b")) == "[system:a][user:b]"
    assert render(EACH + "{# 'developer' #}", *talk[:3]) == "[system:a][user:b][developer:c]"


def test_names_and_reasoning_are_passed_on() -> None:
    source = "{% for m in messages %}{{ m.name }}{{ m.reasoning }}{{ m.reasoning_content }};{% endfor %}"
    spoke = message("assistant", "x", reasoning_content="why ", name="Eve ")
    assert render(source, spoke, message("user", "y", reasoning="no")) == "Eve why why ;;"


def test_the_markings_for_training_are_looked_through() -> None:
    source = "{% generation %}a{% for m in messages %}{{ m.role }}{% break %}{% endfor %}{% endgeneration %}"
    assert render(source, message("user", ""), message("tool", "")) == "auser"


@pytest.mark.parametrize(
    ("source", "more", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", {}, "roles must alternate"),
        ("{{ messages[3].content }}", {}, "has no element 3"),
        ("{{ messages.__class__.__mro__ }}", {}, "unsafe"),
        ("{{ 1 // 0 }}", {}, "zero"),
        ("", {"chat_template": "x"}, "'chat_template'"),
        ("", {"continue_final_message": True}, "'continue_final_message'"),
        ("", {"tools": [{"type": "function"}]}, "function"),
    ],
)
def test_what_cannot_be_rendered_is_an_error_with_its_reason(
    source: str, more: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UnknownPromptError, match=reason):
        render(source, message("user", "x"), **more)


def test_templates_are_found_where_models_keep_them(tmp_path: Path) -> None:
    assert load_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(
        '{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}'
    )
    found = load_template(tmp_path)
    assert found is not None
    assert found.render({"messages": []}) == "d"
    (tmp_path / "chat_template.jinja").write_text("own file")
    found = load_template(tmp_path)
    assert found is not None
    assert found.render({"messages": []}) == "own file"
