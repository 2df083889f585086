"""A chat request as the text that the model reads, rendered as an engine renders it.

The template is the model's own (Jinja, from its tokenizer's folder), the environment is the one that
transformers gives it, and requests are brought into the form in which vLLM hands them over. Sources:
``apply_chat_template`` of transformers 5, ``renderers/hf.py`` and ``renderers/chat_utils.py`` of vLLM.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fairlead.gateway.tokenizing import UnknownPromptError

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TEXT_PARTS = {"text", "input_text", "output_text"}
_OPTIONAL = ("documents", "reasoning_effort")
_NOT_FOLLOWED = ("chat_template", "truncate_prompt_tokens", "mm_processor_kwargs", "continue_final_message")
"""What a request may ask for that changes the prompt in ways not followed here."""


class _Generation(Extension):
    """``{% generation %}`` marks what the model wrote, for training. Here it is what it contains."""

    tags = {"generation"}  # noqa: RUF012 - an instance variable, as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """One model's chat template. ``tokens`` are its named special tokens, such as ``bos_token``."""

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        self._template = environment.from_string(source)
        self._tokens = dict(tokens)
        self._parts = iterates_content(environment.parse(source))
        self._knows_developer = '"developer"' in source or "'developer'" in source

    def render(self, body: Mapping[str, Any]) -> str:
        """Return the prompt of a chat completion's body.

        Raises ``UnknownPromptError``, also where the template refuses the messages or fails.
        """
        for name in _NOT_FOLLOWED:
            if body.get(name):
                raise UnknownPromptError(f"'{name}' is not followed")
        more = {name: body[name] for name in _OPTIONAL if body.get(name) is not None}
        if "reasoning_effort" in more:
            more["enable_thinking"] = more["reasoning_effort"] != "none"
        kwargs = body.get("chat_template_kwargs")
        try:
            if isinstance(kwargs, dict):
                more |= kwargs
            tools = [_tool(tool) for tool in body.get("tools") or ()] or None
            messages = self._messages(body["messages"])
            ask = body.get("add_generation_prompt")
            return self._template.render(
                **{
                    **self._tokens,
                    "messages": messages,
                    "tools": tools,
                    "documents": None,
                    "add_generation_prompt": True if ask is None else ask,
                    **more,
                }
            )
        except UnknownPromptError:
            raise
        # Templates are programs that are fed by strangers: whatever they raise, the engine answers for it.
        except Exception as error:  # noqa: BLE001
            raise UnknownPromptError(f"the chat template: {error}") from None

    def _messages(self, raw: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        messages = [_message(one, parts=self._parts) for one in raw]
        if not self._knows_developer and any(one["role"] == "developer" for one in messages):
            for one in messages:
                if one["role"] == "developer":
                    one["role"] = "system"
                    one.pop("tools", None)
            messages = _one_system(messages)
        return messages


def load_template(folder: Path) -> ChatTemplate | None:
    """Return the chat template of a model's folder; None if it has none, as base models do.

    Raises ValueError if a file there is malformed.
    """
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    alone = folder / "chat_template.jinja"
    source = alone.read_text() if alone.exists() else config.get("chat_template")
    if isinstance(source, list):
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default")
    if not isinstance(source, str):
        return None
    tokens = {}
    for name in _NAMED_TOKENS:
        token = config.get(name)
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str):
            tokens[name] = token
    return ChatTemplate(source, tokens)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005 - the engine prints its local date too


# ---------------------------------------------------------------------- messages


def _message(raw: Mapping[str, Any], *, parts: bool) -> dict[str, Any]:
    """Return one message in the form that templates get, its content as parts or as one text."""
    role = raw["role"]
    texts = _texts(raw.get("content"))
    as_parts = parts and role != "tool"
    content = [{"type": "text", "text": text} for text in texts] if as_parts else "\n".join(texts)
    message: dict[str, Any] = {"role": role, "content": content}
    if role == "assistant":
        calls = raw.get("tool_calls")
        if calls:
            message["tool_calls"] = [_call(one) for one in calls]
        reasoning = raw.get("reasoning")
        if reasoning is None:
            reasoning = raw.get("reasoning_content")
        if reasoning is not None:
            message["reasoning"] = message["reasoning_content"] = reasoning
    elif role == "tool" and "tool_call_id" in raw:
        message["tool_call_id"] = raw["tool_call_id"]
    elif role == "developer":
        message["tools"] = raw.get("tools")
    if isinstance(raw.get("name"), str):
        message["name"] = raw["name"]
    return message


def _texts(content: object) -> list[str]:
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    texts = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and part.get("type") in _TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise UnknownPromptError(f"a message with a part of type '{kind}'")
    return texts


def _call(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool call in the engine's order of fields, its arguments an object, empty if they are none."""
    given = raw["function"]
    arguments = given.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = None
    function = {"arguments": arguments if isinstance(arguments, dict) else {}, "name": given.get("name")}
    return {"id": raw.get("id"), "function": function, "type": raw.get("type", "function")}


def _tool(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool with the fields, in the order, that the engine's own types give it."""
    given = raw["function"]
    function = {name: given.get(name) for name in ("name", "description", "parameters")}
    if given.get("strict") is not None:
        function["strict"] = given["strict"]
    return {"type": "function", "function": function}


def _one_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Move all system messages into one at the front, unless one at the front is all there is."""
    systems = [number for number, one in enumerate(messages) if one["role"] == "system"]
    if systems in ([], [0]):
        return messages
    texts = ["\n".join(_texts(messages[number]["content"])) for number in systems]
    merged = {"role": "system", "content": "\n\n".join(text for text in texts if text)}
    return [merged, *(one for one in messages if one["role"] != "system")]


# ---------------------------------------------------------------------- reading the template


def iterates_content(tree: nodes.Template) -> bool:
    """Return whether the template walks over the parts of a message's content.

    vLLM gives such templates a list of parts, even for a plain text, and all others one text.
    """
    messages = _aliases(tree, {"messages"})
    loops = list(tree.find_all(nodes.For))
    each = {
        loop.target.name
        for loop in loops
        if isinstance(loop.target, nodes.Name) and _reads(loop.iter, messages)
    }
    inside = set()
    passed: dict[int, set[str]] = {}
    for macro in tree.find_all(nodes.Macro):
        named = _content_parameters(tree, macro, each)
        for loop in macro.find_all(nodes.For):
            inside.add(id(loop))
            passed[id(loop)] = named
    for loop in loops:
        if _reads(loop.iter, each, "content"):
            return True
        if isinstance(loop.iter, nodes.Name):
            names = passed[id(loop)] if id(loop) in inside else {"content"}
            if loop.iter.name in names:
                return True
    return False


def _aliases(tree: nodes.Template, names: set[str]) -> set[str]:
    """Return ``names`` and every variable that one of them, or a slice of it, is assigned to."""
    known = set(names)
    while True:
        more = {
            assign.target.name
            for assign in tree.find_all(nodes.Assign)
            if isinstance(assign.target, nodes.Name) and _reads(assign.node, known)
        }
        if more <= known:
            return known
        known |= more


def _reads(node: nodes.Node | None, names: set[str], field: str | None = None) -> bool:
    """Say whether ``node`` is one of ``names`` (or its ``field``), perhaps filtered, tested or sliced."""
    while True:
        if isinstance(node, nodes.Filter | nodes.Test) or (
            isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
        ):
            node = node.node
            continue
        break
    if field is not None:
        if isinstance(node, nodes.Getattr):
            found = node.attr == field
        else:
            found = (
                isinstance(node, nodes.Getitem)
                and isinstance(node.arg, nodes.Const)
                and node.arg.value == field
            )
        if not found:
            return False
        assert isinstance(node, nodes.Getattr | nodes.Getitem)
        node = node.node
    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name in names


def _content_parameters(tree: nodes.Template, macro: nodes.Macro, messages: set[str]) -> set[str]:
    """Return the parameters of ``macro`` that get some message's content in a call."""
    parameters = [parameter.name for parameter in macro.args]
    return {
        name for call in _calls(tree, macro.name) for name in _content_arguments(call, parameters, messages)
    }


def _calls(tree: nodes.Template, name: str) -> Iterator[nodes.Call]:
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name == name:
            yield call


def _content_arguments(call: nodes.Call, parameters: Sequence[str], messages: set[str]) -> Iterator[str]:
    for name, value in zip(parameters, call.args, strict=False):
        if _reads(value, messages, "content"):
            yield name
    for keyword in call.kwargs:
        if keyword.key in parameters and _reads(keyword.value, messages, "content"):
            yield keyword.key
