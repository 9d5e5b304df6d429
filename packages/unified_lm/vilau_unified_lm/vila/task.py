"""VILA's training as a task of the common loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from vilau_common.training import MAIN, ParameterGroup, StepOutput, Task
from vilau_unified_lm.losses import LossConfig, StepTargets, unified_loss
from vilau_unified_lm.vila.data import PictureBatch
from vilau_unified_lm.vila.model import VilaModel

ENCODER = "encoder."


class VilaTask(Task):
    """Next-token loss of text on packed documents. A frozen image encoder is left out of checkpoints."""

    unit = "tokens"

    def __init__(
        self, model: VilaModel, tokenizer: PreTrainedTokenizerBase, loss: LossConfig | None = None
    ) -> None:
        self.model = model
        self.network = model
        self.tokenizer = tokenizer
        self.loss = loss or LossConfig()
        # The encoder's last layer and head are read by nobody here; and a batch may have no picture.
        self.may_skip_parameters = model.config.train_encoder

    def parameter_groups(self) -> list[ParameterGroup]:
        """Hidden matrices of the backbone (Muon's), and everything else."""
        layers = self.model.llm.get_decoder().modules()
        matrices = {id(layer.weight) for layer in layers if isinstance(layer, nn.Linear)}
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return [
            ParameterGroup(
                name="matrices", parameters=[p for p in trainable if id(p) in matrices], matrices=True
            ),
            ParameterGroup(
                name="other", parameters=[p for p in trainable if id(p) not in matrices], weight_decay=0.0
            ),
        ]

    def before_step(self, batches: Sequence[PictureBatch]) -> None:
        self.targets = StepTargets.of([batch.sequence for batch in batches], self.model.device)

    def training_step(self, network: nn.Module, batch: PictureBatch, step: int) -> StepOutput:
        loss = unified_loss(network(batch, self.loss), self.targets, self.loss.normalization).text
        return StepOutput({MAIN: loss}, {"loss/text": loss.detach()})

    def batch_size(self, batch: PictureBatch) -> int:
        return int((batch.sequence.document_ids > 0).sum())

    def trained_state(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.model.state_dict().items() if not self._frozen(name)}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        frozen = {name: value for name, value in self.model.state_dict().items() if self._frozen(name)}
        self.model.load_state_dict({**state, **frozen})

    def save_model(self, directory: Path) -> None:
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)

    def _frozen(self, name: str) -> bool:
        return name.startswith(ENCODER) and not self.model.config.train_encoder
