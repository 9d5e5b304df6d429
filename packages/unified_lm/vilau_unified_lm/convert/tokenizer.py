"""The text tokenizer of an official checkpoint: LLaMA's sentencepiece model with four tokens added at its end.

The official code reads it with transformers' slow `LlamaTokenizer` (`legacy=False`), which today's transformers no
longer has; its fast one leaves the model's normalisation out (LLaMA's own has none, others do). So the model is read
here, and normalised as sentencepiece says, with one difference that `legacy=False` makes: a space is put in front of a
text, not in front of what follows a special token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tokenizers import AddedToken, Regex, normalizers
from transformers import LlamaTokenizer, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import import_protobuf

from vilau_common.errors import UserError
from vilau_common.weight_files import read_json
from vilau_unified_lm.convert.layout import LLM, OfficialCheckpoint
from vilau_unified_lm.vocabulary import RELEASED_SPECIAL_TOKENS
from vilau_vision_tower.clip import load_text_tokenizer

MODEL, TOKENIZER = "tokenizer.model", "tokenizer.json"
BPE = 2  # sentencepiece's TrainerSpec.ModelType
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
NORMAL = 1  # its piece type of what text is merged into; others are control tokens and bytes


def official_tokenizer(checkpoint: OfficialCheckpoint) -> PreTrainedTokenizerBase:
    """Raises UserError where there is none, or one that does not fit the LM's vocabulary."""
    directory = checkpoint.directory / LLM
    if (directory / MODEL).is_file():
        tokenizer = _from_sentencepiece(directory)
    elif (directory / TOKENIZER).is_file():
        tokenizer = load_text_tokenizer(directory)
    else:
        raise UserError(f"no text tokenizer in {directory}: expected {MODEL} or {TOKENIZER}")
    _check(checkpoint, tokenizer)
    return tokenizer


def _check(checkpoint: OfficialCheckpoint, tokenizer: PreTrainedTokenizerBase) -> None:
    """The four added tokens must be the vocabulary's last ones, as the official code counts on."""
    size = checkpoint.parts[LLM].get("vocab_size")
    source = checkpoint.file(LLM)
    if len(tokenizer) != size:
        raise UserError(
            f"{source}: vocab_size is {size}, but the tokenizer beside it has {len(tokenizer)} tokens"
        )
    ids = tokenizer.convert_tokens_to_ids(list(RELEASED_SPECIAL_TOKENS))
    expected = list(range(size - len(ids), size))
    if ids != expected:
        raise UserError(
            f"{source.parent}: the tokenizer must end with {', '.join(RELEASED_SPECIAL_TOKENS)} as {expected}, but "
            f"gives them {ids}"
        )


def _from_sentencepiece(directory: Path) -> PreTrainedTokenizerBase:
    model = _read_model(directory / MODEL)
    vocabulary = {piece.piece: index for index, piece in enumerate(model.pieces)}
    settings = read_json(directory / "tokenizer_config.json")
    tokenizer = LlamaTokenizer(
        vocab=vocabulary,
        merges=_merges(
            {piece.piece: index for index, piece in enumerate(model.pieces) if piece.type == NORMAL}
        ),
        legacy=False,
        add_prefix_space=True,
        add_bos_token=settings.get("add_bos_token", True),
        add_eos_token=settings.get("add_eos_token", False),
        model_max_length=settings.get("model_max_length"),
        padding_side="right",
        **{name: _content(settings[name]) for name in NAMED if settings.get(name) is not None},
    )
    tokenizer.backend_tokenizer.normalizer = _normalizer(model.normalizer_spec)
    added = _added_tokens(directory, settings, len(vocabulary))
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False, special=True) for token in added], special_tokens=True
    )
    return tokenizer


def _read_model(file: Path) -> Any:
    """sentencepiece's `ModelProto`."""
    model = import_protobuf().ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError:
        raise UserError(f"{file} cannot be read as a sentencepiece model; copy it again") from None
    if model.trainer_spec.model_type != BPE or not model.pieces:
        raise UserError(f"{file} is no sentencepiece model of kind BPE, as LLaMA's is")
    return model


def _merges(pieces: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of pieces that is a piece, in the order of ids: sentencepiece makes the piece of least id first."""
    return [
        (piece[:cut], piece[cut:])
        for piece in sorted(pieces, key=lambda piece: pieces[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]


def _normalizer(spec: Any) -> normalizers.Normalizer | None:
    """What sentencepiece does to a text before it is cut into pieces, short of writing spaces as ▁."""
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        # A space in front stays: it is the one that a text begins with anyway.
        steps += [normalizers.Replace(Regex(" +"), " "), normalizers.Strip(left=False, right=True)]
    return normalizers.Sequence(steps) if steps else None


def _added_tokens(directory: Path, settings: dict[str, Any], base: int) -> list[str]:
    """The tokens behind the sentencepiece model's, in the order of their ids."""
    file = directory / "added_tokens.json"
    ids = dict(read_json(file)) if file.is_file() else {}
    ids |= {_content(token): int(id_) for id_, token in (settings.get("added_tokens_decoder") or {}).items()}
    added = sorted((id_, token) for token, id_ in ids.items() if id_ >= base)
    if [id_ for id_, _ in added] != list(range(base, base + len(added))):
        raise UserError(
            f"{directory}: the added tokens' ids {[id_ for id_, _ in added]} leave gaps behind {base - 1}"
        )
    return [token for _, token in added]


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)
