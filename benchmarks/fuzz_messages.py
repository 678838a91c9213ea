"""Malformed messages, reproducible from a seed: valid messages with absurd values, and invalid bytes."""

import math
import random
from typing import Any

from google.protobuf.message import Message

from medha_jax.protos import inference_pb2 as pb

NUMBERS = [0.0, -0.0, 1.0, -1.0, 1e308, -1e308, 5e-324, math.nan, math.inf, -math.inf, 2.5, 100.5]
INTEGERS = [0, 1, 2, 3, 2**31 - 1, 2**32 - 1, 320, 511, 512, 4096]
SIGNED = [0, -1, -2, 2**31 - 1, -(2**31)]
TEXTS = ["", "a", "\x00", "\n\r", "a" * 300, "é😀", "\ufffd", "{{7*7}}", "%s%n", "../../etc/passwd", "a" * 5000]
MESSAGES: dict[str, type[Message]] = {
    "Generate": pb.GenerateRequest,
    "GenerateStream": pb.GeneratePart,
    "Tokenize": pb.TokenizeRequest,
    "GetModelInfo": pb.GetModelInfoRequest,
    "GetLoad": pb.GetLoadRequest,
    "Abort": pb.AbortRequest,
}


def malformed(draw: random.Random) -> tuple[str, list[bytes]]:
    """A method and the messages of one call to it."""
    method = draw.choices(list(MESSAGES), (60, 20, 8, 2, 2, 8))[0]
    count = draw.randrange(4) if method == "GenerateStream" else 1
    return method, [one(draw, MESSAGES[method]) for _ in range(count)]


def one(draw: random.Random, kind: type[Message]) -> bytes:
    """One message of a kind, filled at random and sometimes damaged."""
    message = kind()
    fill(draw, message)
    if isinstance(message, pb.GenerateRequest) and message.HasField("chat"):
        _choose(draw, message)
    if isinstance(message, pb.GenerateRequest) and draw.random() < 0.95:
        # valid requests generate few tokens
        message.settings.sampling.max_tokens = draw.choice((0, 1, 2, 2**32 - 1))
    data = message.SerializeToString()
    return damaged(draw, data) if draw.random() < 0.5 else data


def _choose(draw: random.Random, message: pb.GenerateRequest) -> None:
    """A chat, filled last, replaced the other prompts: often put one back, or give the chat roles that there are."""
    match draw.randrange(4):
        case 0:
            message.text = draw.choice(TEXTS)
        case 1:
            fill(draw, message.token_ids)
        case 2:
            for one_of_them in message.chat.messages:
                one_of_them.role = draw.choice(("system", "user", "assistant", "tool"))
            message.chat.variables = "{}"
            del message.chat.tools[:]


def fill(draw: random.Random, message: Message) -> None:
    """Set some fields to absurd values."""
    for field in message.DESCRIPTOR.fields:
        if draw.random() < 0.5:
            continue
        if field.is_repeated:
            count, filled = draw.choice((1, 2, 17, 600)), getattr(message, field.name)
            if (entry := field.message_type) is None:
                filled.extend(value(draw, field) for _ in range(count))
            elif not entry.GetOptions().map_entry:
                for _ in range(min(count, 17)):
                    fill(draw, filled.add())
            else:
                filled.update({value(draw, entry.fields[0]): value(draw, entry.fields[1]) for _ in range(count)})
        elif field.message_type is not None:
            fill(draw, getattr(message, field.name))
        else:
            setattr(message, field.name, value(draw, field))


def value(draw: random.Random, field: Any) -> Any:
    """Draw a value of a field's type, often an absurd one."""
    if field.type == field.TYPE_STRING:
        return draw.choice(TEXTS)
    if field.type == field.TYPE_DOUBLE:
        return draw.choice(NUMBERS)
    if field.type == field.TYPE_BOOL:
        return draw.random() < 0.5
    if field.type == field.TYPE_ENUM:
        return draw.randrange(-3, 9)
    if field.type in (field.TYPE_INT32, field.TYPE_INT64):
        return draw.choice(SIGNED)
    return draw.choice(INTEGERS)


def damaged(draw: random.Random, data: bytes) -> bytes:
    """Cut, flip, repeat, insert, or replace bytes."""
    match draw.randrange(6):
        case 0:
            return data[: draw.randrange(len(data) + 1)]
        case 1 if data:
            place = draw.randrange(len(data))
            return data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :]
        case 2:
            return data + data
        case 3:
            place = draw.randrange(len(data) + 1)
            return data[:place] + draw.randbytes(draw.randrange(1, 9)) + data[place:]
        case 4:
            return b"\x0b" * draw.randrange(1, 200)  # groups within groups
    return draw.randbytes(draw.randrange(64))
