"""The unified LM's training as a task of the common loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from vilau_common.training import MAIN, ParameterGroup, Sharding, StepOutput, Task
from vilau_unified_lm.lora import ADAPTER, Adapters
from vilau_unified_lm.losses import LossConfig, StepTargets, unified_loss
from vilau_unified_lm.model import UnifiedLM
from vilau_unified_lm.packing import MixedSequence
from vilau_unified_lm.stage import PartRates, parts

TOWER = "vision_tower."
LORA = ".lora_"  # in the names of PEFT's low-rank matrices


class UnifiedTask(Task):
    """Next-token loss on packed documents. What is frozen, as the vision tower is, is left out of checkpoints."""

    unit = "tokens"

    def __init__(
        self,
        model: UnifiedLM,
        tokenizer: PreTrainedTokenizerBase,
        loss: LossConfig | None = None,
        rates: PartRates | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        """rates: of each part's learning rate, all the same by default; adapters: inside the model's backbone."""
        self.model = model
        self.network = model
        self.tokenizer = tokenizer
        self.loss = loss or LossConfig()
        self.rates = rates or PartRates()
        self.adapters = adapters

    def parameter_groups(self) -> list[ParameterGroup]:
        """Of each part that is trained the hidden matrices (Muon's) and everything else."""
        hidden = [self.model.llm.get_decoder(), self.model.depth.blocks]
        # Low-rank factors are no matrices of a layer's own: their product is.
        matrices = {
            id(layer.weight)
            for part in hidden
            for name, layer in part.named_modules()
            if isinstance(layer, nn.Linear) and LORA not in name
        }
        groups = []
        for kind in ("matrices", "other"):
            for name, part in parts(self.model).items():
                parameters = [
                    weight
                    for weight in part.parameters()
                    if weight.requires_grad and (id(weight) in matrices) == (kind == "matrices")
                ]
                groups.append(
                    ParameterGroup(
                        name=f"{name}/{kind}",
                        parameters=parameters,
                        learning_rate_scale=getattr(self.rates, name),
                        weight_decay=None if kind == "matrices" else 0.0,
                        matrices=kind == "matrices",
                    )
                )
        return [group for group in groups if group.parameters]

    def before_step(self, batches: Sequence[MixedSequence]) -> None:
        self.targets = StepTargets.of(batches, self.model.device)

    def sharding(self) -> Sharding:
        """The backbone's layers. The depth transformer runs on as many positions as a process's batch happens to have,
        in so many parts as that takes, so its weights are gathered once a step; the frozen tower stays whole."""
        kinds = set(self.model.llm._no_split_modules or ())
        layers = [module for module in self.model.llm.modules() if type(module).__name__ in kinds]
        return Sharding(layers=layers, whole=[self.model.vision_tower])

    def training_step(self, network: nn.Module, batch: MixedSequence, step: int) -> StepOutput:
        loss = unified_loss(network(batch, self.loss), self.targets, self.loss.normalization)
        metrics: dict[str, Tensor | float] = {
            "loss/text": loss.text.detach(),
            "loss/visual": loss.visual.detach(),
        }
        for depth, value in enumerate(loss.per_depth.detach()):
            metrics[f"loss/visual_d{depth}"] = value
        return StepOutput({MAIN: loss.total}, metrics)

    def batch_size(self, batch: MixedSequence) -> int:
        return int((batch.document_ids > 0).sum())

    def trained_state(self) -> dict[str, Tensor]:
        # A frozen part is as it was when the run began, and can be large.
        frozen = {
            name
            for name, weight in self.model.named_parameters(remove_duplicate=False)
            if not weight.requires_grad
        }
        state = self.model.state_dict()
        return {
            name: value for name, value in state.items() if name not in frozen and not name.startswith(TOWER)
        }

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        if state.keys() != self.trained_state().keys():
            raise ValueError("the weights in the checkpoint are of other parts than this run trains")
        self.model.load_state_dict({**self.model.state_dict(), **state})

    def save_model(self, directory: Path) -> None:
        """Adapters are saved beside the model and then become part of it, for good: it loads without PEFT."""
        if self.adapters is not None:
            self.adapters.save(directory / ADAPTER)
            self.adapters.merge()
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
