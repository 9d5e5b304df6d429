"""`VilaUForMultimodalLM`: a unified LM with Hugging Face's `forward` and `generate`.

Weights, their names and the training are `UnifiedLM`'s; what is generated comes from the `Engine`, so it is what
`Session` gives. `forward` has no step whose shape hangs on values, so it compiles without a graph break.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import CausalLMOutput

from vilau_common.errors import UserError
from vilau_unified_lm.losses import LossConfig, StepTargets, unified_loss
from vilau_unified_lm.model import UnifiedLM
from vilau_unified_lm.native.arguments import HUB_OPTIONS
from vilau_unified_lm.native.card import Training, model_card
from vilau_unified_lm.native.generation import Asked, generate
from vilau_unified_lm.native.ids import codes_of_ids, parts_of_ids
from vilau_unified_lm.native.options import MARKS, check_options, generation_config_of, vocabulary_of
from vilau_unified_lm.native.processor import native_tokenizer
from vilau_unified_lm.packing import IGNORE, MixedSequence
from vilau_unified_lm.vicuna import document_builder
from vilau_unified_lm.vocabulary import Vocabulary

CARD = "README.md"


class VilaUForMultimodalLM(UnifiedLM, GenerationMixin):
    """Reads text, images and videos, and writes them. Its inputs are the `VilaUProcessor`'s."""

    input_modalities = ("text", "image", "video")
    output_modalities = ("text", "image", "video")
    main_input_name = "input_ids"

    @classmethod
    def from_pretrained(cls, directory: str | Path, *positional: Any, **options: Any) -> Any:
        """As transformers' own. Raises UserError where weights are missing or of other shapes.

        The directory of any trained run's model/ will do: what its generation config lacks is taken from its tokenizer.
        """
        wants_report = options.pop("output_loading_info", False)
        # Told of below, in one sentence, unless the caller wants them ignored.
        ignored = options.pop("ignore_mismatched_sizes", False)
        options["ignore_mismatched_sizes"] = True
        model, report = super().from_pretrained(directory, *positional, output_loading_info=True, **options)
        for what, names in (
            ("lack", report["missing_keys"]),
            ("have another shape of", [] if ignored else [name for name, *_ in report["mismatched_keys"]]),
            ("have what the model does not know:", report["unexpected_keys"]),
        ):
            if names:
                raise UserError(
                    f"the weights in {directory} {what} {sorted(names)[0]}, one of {len(names)}; they do not belong to "
                    "the config.json beside them"
                )
        if getattr(model.generation_config, MARKS, None) is None:
            hub = {name: value for name, value in options.items() if name in HUB_OPTIONS}
            tokenizer = native_tokenizer(directory, hub)
            tower = model.image_tokenizer
            vocabulary = Vocabulary.from_tokenizer(tokenizer, tower.codebook_size, tower.depth)
            builder = document_builder(model.config.conversation, tokenizer, vocabulary)
            model.generation_config = generation_config_of(builder)
        return (model, report) if wants_report else model

    def save_pretrained(self, directory: str | Path, *positional: Any, **options: Any) -> None:
        """As transformers' own, and a model card where there is none yet; `vilau export` writes one with results."""
        super().save_pretrained(directory, *positional, **options)
        card = Path(directory) / CARD
        if not card.exists() and options.get("is_main_process", True):
            card.write_text(model_card(self, Training()), encoding="utf-8")

    def get_input_embeddings(self) -> torch.nn.Module:
        """The text ids' rows."""
        return self.llm.get_input_embeddings()

    def get_output_embeddings(self) -> torch.nn.Module:
        """The text head."""
        return self.llm.get_output_embeddings()

    @property
    def vocabulary(self) -> Vocabulary:
        """The extended vocabulary."""
        tower = self.image_tokenizer
        text_size = self.config.backbone_config.vocab_size
        return vocabulary_of(self.generation_config, text_size, tower.codebook_size, tower.depth)

    def forward(  # type: ignore[override]  # training reads mixed sequences, Hugging Face ids and pixels
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> CausalLMOutput:
        """Logits of the next text token, float [B, L, V].

        input_ids, attention_mask: int64 [B, L]; pixel_values: float [N, 3, H, W]. labels: int64 [B, L], the ids to be
        predicted where they stand, -100 elsewhere; a visual position's id asks for its codes. With them the loss is
        VILA-U's: the mean over text plus the mean over visual tokens (section 3.2).
        """
        visual = input_ids == self.config.backbone_config.vocab_size
        batch = self._mixed(input_ids, visual, attention_mask, pixel_values, labels)
        hidden, embeddings = self.hidden_states(batch)
        loss = None
        if labels is not None:
            losses = self.token_losses(hidden, embeddings, batch, LossConfig())
            step = StepTargets.of([batch], input_ids.device)
            loss = unified_loss(losses, step, LossConfig().normalization).total
        return CausalLMOutput(loss=loss, logits=self.text_logits(hidden))

    def _mixed(
        self,
        input_ids: Tensor,
        visual: Tensor,
        attention_mask: Tensor | None,
        pixel_values: Tensor | None,
        labels: Tensor | None,
    ) -> MixedSequence:
        """The processor's output as a mixed sequence, one document a row."""
        tower = self.image_tokenizer
        if pixel_values is None:
            codes = torch.zeros(0, tower.depth, dtype=torch.int64, device=input_ids.device)
        else:
            codes = tower.encode(pixel_values.to(self.dtype)).flatten(0, 2)
        positions = tower.grid[0] * tower.grid[1]
        there = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        text_targets, visual_targets = (torch.full_like(input_ids, IGNORE) for _ in range(2))
        if labels is not None:
            following = labels[:, 1:]
            number = visual.flatten().cumsum(0).view_as(visual)[:, 1:] - 1
            drawn = visual[:, 1:] & (following != IGNORE)
            text_targets[:, :-1] = following.masked_fill(visual[:, 1:], IGNORE)
            visual_targets[:, :-1] = number.masked_fill(~drawn, IGNORE)
        return MixedSequence(
            token_ids=input_ids.masked_fill(visual, 0),
            visual_mask=visual,
            codes=codes,
            grid_index=torch.arange(positions, device=codes.device).repeat(codes.shape[0] // positions),
            position_ids=(there.cumsum(1) - 1).clamp(min=0),
            document_ids=there,
            branch_ids=torch.zeros_like(input_ids),
            text_targets=text_targets,
            visual_targets=visual_targets,
        )

    @torch.no_grad()
    def generate(  # what transformers' own takes and this one does not is refused by name
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        generation_mode: str = "text",
        seed: int | Sequence[int] | None = None,
        frames: int | None = None,
        negative_prompt_ids: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        streamer: BaseStreamer | None = None,
        **options: Any,
    ) -> Tensor:
        """What follows each prompt, `num_return_sequences` samples of each in turn, ids int64 (see `Vocabulary`).

        generation_mode: 'text': prompt and answer [B, L']. 'image', 'video': the visual tokens [B, frames * h * w * D]
        of one picture or video. 'interleaved': text and pictures as the model decides, with the marks around pictures,
        padded at the end [B, L'].
        seed: of each sample, or of the first; by itself from torch's generator. frames: of a video; the model's own
        number by itself. negative_prompt_ids: what guidance leads away from, one or one a prompt; the blank prompt by
        itself. streamer: gets the prompt and each text id, or a visual position's D tokens; one prompt only.
        options: fields of a `GenerationConfig`: max_new_tokens or max_length (without them as much as the context
        holds; pictures are always whole), do_sample, temperature, top_k, top_p, guidance_scale, num_return_sequences,
        cache_implementation ('dynamic' or 'static').

        Raises UserError, before anything is computed, for what is not supported and for values out of range.
        """
        config = copy.deepcopy(self.generation_config)
        given = {} if generation_config is None else generation_config.to_diff_dict()
        given.pop("transformers_version", None)
        unknown = [name for name in options if not hasattr(config, name)]
        # Not by its update(), which would refuse several samples without do_sample: pictures are sampled by themselves.
        for name, value in {**given, **options}.items():
            setattr(config, name, value)
        check_options(config, unknown)
        asked = Asked(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            mode=generation_mode,
            seed=seed,
            frames=self.config.video_frames if frames is None else frames,
            negative_ids=negative_prompt_ids,
            negative_mask=negative_prompt_attention_mask,
            streamer=streamer,
        )
        training = self.training
        try:
            return generate(self, self.vocabulary, config, asked).to(input_ids.device)
        finally:
            self.train(training)

    # --- back to pictures ---------------------------------------------------------------------------------------

    def decode_image_tokens(self, ids: Tensor) -> Tensor:
        """Visual tokens int64 [B, h * w * D] -> images float [B, 3, H, W] in [-1, 1]."""
        return self.decode_video_tokens(ids)[:, 0]

    def decode_video_tokens(self, ids: Tensor) -> Tensor:
        """Visual tokens int64 [B, frames * h * w * D] -> videos float [B, frames, 3, H, W] in [-1, 1].

        Raises UserError where they are no whole pictures.
        """
        codes = codes_of_ids(ids, self.vocabulary, self.image_tokenizer.grid).to(self.device)
        images = self.image_tokenizer.decode(codes.flatten(0, 1))
        return images.unflatten(0, codes.shape[:2])

    def decode_interleaved_tokens(self, ids: Tensor) -> list[list[Tensor]]:
        """Ids int64 [B, L] -> each sample's parts in turn.

        A text is ids int64 [n], an image float [3, H, W], a video float [frames, 3, H, W], pixels in [-1, 1].
        """
        samples = []
        for row in ids.cpu():
            parts = parts_of_ids(row, self.vocabulary, self.image_tokenizer.grid)
            samples.append([part if part.ndim == 1 else self._decoded(part) for part in parts])
        return samples

    def _decoded(self, codes: Tensor) -> Tensor:
        images = self.image_tokenizer.decode(codes.to(self.device).reshape(-1, *codes.shape[-3:]))
        return images if codes.ndim == 4 else images[0]
