"""What a model's output consists of, in the order in which it came."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ContentPiece:
    """Text for the reader."""

    text: str


@dataclass(frozen=True)
class ReasoningPiece:
    """Text of the model's reasoning, without its marks."""

    text: str


@dataclass(frozen=True)
class ToolCallStart:
    """The model calls a function; the calls of one output have the indices 0, 1 and so on."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ToolCallArguments:
    """More of the JSON text of a call's arguments: joined, a JSON object, unless the output broke off."""

    index: int
    text: str


ChatPiece = ContentPiece | ReasoningPiece | ToolCallStart | ToolCallArguments


def joined(pieces: list[ChatPiece]) -> list[ChatPiece]:
    """The pieces with neighbours of one kind made into one."""
    out: list[ChatPiece] = []
    for piece in pieces:
        match out[-1] if out else None, piece:
            case ContentPiece(text=before), ContentPiece(text=text):
                out[-1] = ContentPiece(before + text)
            case ReasoningPiece(text=before), ReasoningPiece(text=text):
                out[-1] = ReasoningPiece(before + text)
            case ToolCallArguments(index=one, text=before), ToolCallArguments(index=other, text=text) if one == other:
                out[-1] = ToolCallArguments(one, before + text)
            case _:
                out.append(piece)
    return out
