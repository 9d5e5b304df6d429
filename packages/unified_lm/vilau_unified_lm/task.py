"""The unified LM's training as a task of the common loop."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from vilau_common.training import MAIN, ParameterGroup, Sharding, StepOutput, Task
from vilau_unified_lm.model import UnifiedLM
from vilau_unified_lm.packing import MixedSequence

TOWER = "vision_tower."


class UnifiedTask(Task):
    """Next-token loss on packed documents; the vision tower is frozen and left out of checkpoints."""

    unit = "tokens"

    def __init__(self, model: UnifiedLM, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.network = model
        self.tokenizer = tokenizer

    def parameter_groups(self) -> list[ParameterGroup]:
        """Hidden matrices of backbone and depth transformer (Muon's), and everything else."""
        hidden = [self.model.llm.model.layers, self.model.depth.blocks]
        matrices = {id(m.weight) for part in hidden for m in part.modules() if isinstance(m, nn.Linear)}
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return [
            ParameterGroup(
                name="matrices", parameters=[p for p in trainable if id(p) in matrices], matrices=True
            ),
            ParameterGroup(
                name="other", parameters=[p for p in trainable if id(p) not in matrices], weight_decay=0.0
            ),
        ]

    def sharding(self) -> Sharding:
        """The backbone's layers. The depth transformer runs on as many positions as a process's batch happens to have,
        in so many parts as that takes, so its weights are gathered once a step; the frozen tower stays whole."""
        kinds = set(self.model.llm._no_split_modules or ())
        layers = [module for module in self.model.llm.modules() if type(module).__name__ in kinds]
        return Sharding(layers=layers, whole=[self.model.vision_tower])

    def training_step(self, network: nn.Module, batch: MixedSequence, step: int) -> StepOutput:
        loss = network(batch).loss
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
        state = self.model.state_dict()
        return {name: value for name, value in state.items() if not name.startswith(TOWER)}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        frozen = {f"{TOWER}{name}": value for name, value in self.model.vision_tower.state_dict().items()}
        self.model.load_state_dict({**state, **frozen})

    def save_model(self, directory: Path) -> None:
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
