"""The unified LM behind transformers' interface: tensors of the processor in, logits, losses and ids out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.generation.streamers import BaseStreamer
from transformers.utils import ModelOutput

from vilau_common.errors import UserError
from vilau_unified_lm.generation.engine import Engine
from vilau_unified_lm.generation.loop import Listener
from vilau_unified_lm.generation.request import Event, Finish, Generated, TextEvent
from vilau_unified_lm.huggingface import inputs
from vilau_unified_lm.huggingface.requests import Batch, requests_of
from vilau_unified_lm.huggingface.settings import Settings
from vilau_unified_lm.huggingface.tokens import check_mode, codes_of, generated_ids
from vilau_unified_lm.model import UnifiedLM
from vilau_unified_lm.packing import IGNORE
from vilau_unified_lm.vocabulary import Vocabulary


@dataclass
class UnifiedLMOutput(ModelOutput):
    """loss: text_loss + visual_loss, means over the labelled tokens of each kind, 0 where there are none."""

    loss: Tensor | None = None  # float32 []
    logits: Tensor | None = None  # float [B, L, V], of the text id that follows each place
    text_loss: Tensor | None = None  # float32 []
    visual_loss: Tensor | None = None  # float32 []


class UnifiedLMForConditionalGeneration(UnifiedLM, GenerationMixin):
    """`UnifiedLM`, the same weights under the same names, as the Auto classes load it.

    `from_pretrained` reads what `vilau export` writes; of a run's own model/ directory it reads the weights, too, but
    `generate` then needs a generation_config that names the tokens (`export.generation_config`).
    """

    input_modalities = ("text", "image", "video")
    output_modalities = ("text", "image", "video")
    main_input_name = "input_ids"

    def forward(  # type: ignore[override]  # the trainings' form is UnifiedLM's: packed documents
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        image_prompt_ids: Tensor | None = None,
        image_prompt_attention_mask: Tensor | None = None,
        negative_prompt_ids: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
    ) -> UnifiedLMOutput:
        """One document a row.

        input_ids: int64 [B, L], V at visual positions. attention_mask: int64 [B, L], 0 at padding on either side.
        pixel_values: float [N, 3, H, W] in [-1, 1], the pictures in the order of input_ids. labels: int64 [B, L], as
        input_ids where a token or position is learned, -100 elsewhere. The prompts for `generate` that the processor
        adds are not read.

        Raises UserError where pictures and visual positions are not equal in number.
        """
        codes = inputs.encoded(self, pixel_values)
        if not torch.compiler.is_compiling():  # a look at values, which no compiled graph has
            inputs.check_places(self, input_ids, pixel_values)
        batch = inputs.mixed_sequence(self, input_ids, attention_mask, codes)
        hidden, embeddings = self.hidden_states(batch)
        logits = self.text_logits(hidden)
        if labels is None:
            return UnifiedLMOutput(logits=logits)
        vocab_size = int(self.config.backbone_config.vocab_size)
        following = F.pad(labels[:, 1:], (0, 1), value=IGNORE)
        text = F.cross_entropy(
            logits.flatten(0, 1).float(),
            following.masked_fill(following >= vocab_size, IGNORE).flatten(),
            ignore_index=IGNORE,
            reduction="sum",
        )
        text_count = ((following >= 0) & (following < vocab_size)).sum()
        # Where the visual positions are, in order: sorting has a known shape, which looking for them has not.
        places = batch.visual_mask.flatten().int().argsort(descending=True, stable=True)[: len(batch.codes)]
        learned = labels.flatten()[places] >= vocab_size
        before = hidden.flatten(0, 1)[(places - 1).clamp(min=0)]
        scores = self.depth.logits(self.depth(before, embeddings)).float()
        visual = F.cross_entropy(scores.flatten(0, 1), batch.codes.flatten(), reduction="none")
        visual = visual.view_as(batch.codes).mean(dim=1) * learned
        text_loss = text / text_count.clamp(min=1)
        visual_loss = visual.sum() / learned.sum().clamp(min=1)
        return UnifiedLMOutput(text_loss + visual_loss, logits, text_loss, visual_loss)

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        *,
        generation_mode: str = "text",
        generation_config: GenerationConfig | None = None,
        image_prompt_ids: Tensor | None = None,
        image_prompt_attention_mask: Tensor | None = None,
        negative_prompt_ids: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        seeds: int | Sequence[int] | None = None,
        num_frames: int | None = None,
        streamer: BaseStreamer | None = None,
        **settings: Any,
    ) -> Tensor:
        """What follows each prompt, by the engine of `generation`; int64 [B * num_return_sequences, …].

            text          the prompt and the answer, with the token that ends it
            image         the picture's visual ids [.., T*D], see `tokens` and `decode_image_tokens`
            video         the same of num_frames frames (the configuration's video_frames by itself)
            interleaved   text, <image_start> visual ids <image_end>, … as the model decides

        Rows are padded at the end. The inputs are the processor's: the same generation_mode has to be given there, or
        none (then `image_prompt_ids` is the prompt of a drawing). seeds: see `settings.seeds_of`; a sequence depends on
        its seed and prompt, not on the batch around it. streamer: of one sequence, gets the prompt and then ids as they
        come (the marks around pictures are not told). settings: see `settings`. At most as much is generated as the
        model's context has room for.

        Raises UserError before anything is computed.
        """
        check_mode(generation_mode)
        if generation_mode == "image" and image_prompt_ids is not None:
            input_ids, attention_mask = image_prompt_ids, image_prompt_attention_mask
        chosen = Settings.of(
            generation_mode, self.generation_config, generation_config, settings, input_ids.shape[1]
        )
        count = len(input_ids) * chosen.sequences
        if streamer is not None and count > 1:
            raise UserError(f"a streamer is told of one sequence, but {count} are asked for")
        negatives = None
        if negative_prompt_ids is not None:
            negatives = Batch(negative_prompt_ids, negative_prompt_attention_mask)
        requests = requests_of(
            self,
            generation_mode,
            chosen,
            Batch(input_ids, attention_mask),
            negatives,
            pixel_values,
            seeds,
            num_frames,
        )
        if streamer is not None:
            streamer.put(input_ids.cpu())
        was_training = self.training
        try:
            generated = Engine(self, chosen.compile).generate(
                requests,
                visual=chosen.visual,
                text=chosen.words,
                ends=chosen.ends,
                marks=chosen.vocabulary if generation_mode == "interleaved" else None,
                on_event=None if streamer is None else _telling(streamer, chosen.vocabulary),
            )
        finally:
            self.train(was_training)  # the engine's evaluation mode is its own affair
        if streamer is not None:
            streamer.end()
        rows = [_row(one, generation_mode, chosen) for one in generated]
        longest = max(len(row) for row in rows)
        padded = [row + [chosen.padding] * (longest - len(row)) for row in rows]
        new = torch.tensor(padded, dtype=torch.long, device=input_ids.device)
        if generation_mode != "text":
            return new
        return torch.cat([input_ids.repeat_interleave(chosen.sequences, dim=0), new], dim=1)

    def decode_image_tokens(self, image_tokens: Tensor) -> Tensor:
        """Visual ids int64 [N, F*T*D] -> images float32 [N, 3, H, W] in [-1, 1]; [N, F, 3, H, W] of several frames.

        Raises UserError for ids that are no whole pictures.
        """
        vocabulary = Vocabulary(**self.generation_config.vocabulary)
        tokenizer = self.image_tokenizer
        codes = codes_of(image_tokens.to(self.device), vocabulary, tokenizer.grid)
        images = tokenizer.decode(codes.flatten(0, 1)).unflatten(0, codes.shape[:2])
        return images[:, 0] if codes.shape[1] == 1 else images


def _row(generated: Generated, mode: str, chosen: Settings) -> list[int]:
    """A sequence's new ids."""
    if mode in ("image", "video"):
        _, *visual, _ = generated_ids(generated, chosen.vocabulary)
        return visual
    end = [chosen.ends[0]] if generated.finish is Finish.END else []
    return generated_ids(generated, chosen.vocabulary) + end


def _telling(streamer: BaseStreamer, vocabulary: Vocabulary) -> Listener:
    def listen(event: Event) -> None:
        if isinstance(event, TextEvent):
            streamer.put(torch.tensor([event.ids[-1]]))
        else:
            streamer.put(vocabulary.visual_ids(event.codes[-1]).cpu())

    return listen
