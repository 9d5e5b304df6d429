"""What may be given to the processor, checked before anything is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vilau_common.data.conversation import ASSISTANT, check_places
from vilau_common.data.encoder import BadSample
from vilau_common.errors import UserError
from vilau_unified_lm.native.messages import Chat

# What says where and how a file is had; what else a pipeline passes on is not for configurations.
HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only", "subfolder")
GENERATION_MODES = ("text", "image", "video", "interleaved")


def check_arguments(generation_mode: str, audio: None, padding: bool, return_tensors: str) -> None:
    if generation_mode not in GENERATION_MODES:
        raise UserError(
            f"generation_mode is {generation_mode!r}; the choices are {', '.join(GENERATION_MODES)}"
        )
    if audio is not None:
        raise UserError("audio is given; the model reads text, images and videos")
    if padding is False:
        raise UserError(
            "padding is False; prompts of a batch are padded on the left, and one alone needs no padding"
        )
    if return_tensors != "pt":
        raise UserError(f"return_tensors is {return_tensors!r}; the model takes torch tensors, 'pt'")


def check_chat(chat: Chat) -> None:
    try:
        check_places([turn.text for turn in chat.turns], len(chat.images), len(chat.videos))
    except BadSample as error:
        raise UserError(str(error)) from None


def check_last(chat: Chat, add_generation_prompt: bool, continue_final_message: bool) -> None:
    """Whose the last message is must fit what is to follow it."""
    if not chat.turns:
        raise UserError("the conversation is empty; it has at least one message")
    answered = chat.turns[-1].role == ASSISTANT
    if continue_final_message and not answered:
        raise UserError(
            "continue_final_message goes on with the assistant's message, but the last one is the user's"
        )
    if answered and add_generation_prompt and not continue_final_message:
        raise UserError(
            "the last message is the assistant's: set continue_final_message=True to go on with it, or "
            "add_generation_prompt=False"
        )


def shared_out(given: Any, texts: Sequence[str], what: str, is_one: Callable[[Any], bool]) -> list[list[Any]]:
    """Images or videos for each prompt. is_one: whether it is one of them, not a list of several.

    Raises UserError where they are not one item a prompt.
    """
    if given is None:
        return [[] for _ in texts]
    items = [given] if is_one(given) else list(given)
    if len(texts) == 1 and all(is_one(item) for item in items):
        return [items]
    if len(items) != len(texts):
        raise UserError(
            f"{len(texts)} prompts came with {len(items)} {what}; give one item a prompt, a list where it has several"
        )
    return [[item] if is_one(item) else list(item) for item in items]
