"""The two trainings of this part as tasks of the common loop: the CLIP stand-in, and the tower."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, SiglipModel

from vilau_common.errors import UserError
from vilau_common.images import sheet, to_array, to_tensor
from vilau_common.training import MAIN, ParameterGroup, Sharding, StepOutput, Task
from vilau_vision_tower.clip import TextEncoder
from vilau_vision_tower.data import CaptionedBatch
from vilau_vision_tower.losses import (
    AdversarialLoss,
    ContrastiveConfig,
    ContrastiveLoss,
    TowerLossConfig,
    psnr,
)
from vilau_vision_tower.tower import VisionTower

SHEET_COLUMNS = 12
TEXT_ENCODER = "text_encoder"
DISCRIMINATOR = "discriminator"  # its optimiser
# Parts of the objective that are neither trained nor kept in checkpoints: they come from files of their own.
FROZEN = (TEXT_ENCODER, "perceptual")


class ClipObjective(nn.Module):
    """Contrastive loss of a SigLIP model on a batch."""

    def __init__(self, model: SiglipModel, contrastive: ContrastiveConfig) -> None:
        super().__init__()
        self.model = model
        # The loss has its own; these take its values when the model is saved.
        model.logit_scale.requires_grad_(False)
        model.logit_bias.requires_grad_(False)
        self.contrastive = ContrastiveLoss(contrastive)

    def forward(self, batch: CaptionedBatch) -> Tensor:
        """The loss, a scalar."""
        images = F.normalize(self.model.vision_model(pixel_values=batch.images).pooler_output, dim=-1)
        ids = torch.cat([batch.caption_ids, batch.negative_ids])
        texts = F.normalize(self.model.text_model(input_ids=ids).pooler_output, dim=-1)
        loss: Tensor = self.contrastive(images, texts[: len(images)], texts[len(images) :], ids)
        return loss


class ClipTask(Task):
    """Trains the CLIP stand-in."""

    unit = "images"

    def __init__(
        self, model: SiglipModel, tokenizer: PreTrainedTokenizerFast, contrastive: ContrastiveConfig
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.network: ClipObjective = ClipObjective(model, contrastive)

    def parameter_groups(self) -> list[ParameterGroup]:
        return matrix_groups(self.network)

    def training_step(self, network: nn.Module, batch: CaptionedBatch, step: int) -> StepOutput:
        loss = network(batch)
        return StepOutput({MAIN: loss}, {"loss/contrastive": loss.detach()})

    def batch_size(self, batch: CaptionedBatch) -> int:
        return len(batch.images)

    def after_step(self, step: int) -> None:
        self.network.contrastive.cap_scale()

    @torch.no_grad()
    def save_model(self, directory: Path) -> None:
        loss = self.network.contrastive
        self.model.logit_scale.fill_(loss.log_scale.item())
        self.model.logit_bias.fill_(0.0 if loss.bias is None else loss.bias.item())
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)


class TowerObjective(nn.Module):
    """The losses of the tower, and of the discriminator that judges it, on a batch.

    Text encoder and perceptual distance are frozen. All is one forward pass, so that several processes, which wait
    for each other's gradients from one forward pass to the next, may average both losses' gradients after it.
    """

    def __init__(
        self,
        tower: VisionTower,
        text_encoder: TextEncoder,
        contrastive: ContrastiveConfig,
        weights: TowerLossConfig,
        perceptual: nn.Module | None,
    ) -> None:
        super().__init__()
        self.weights = weights
        self.tower = tower
        self.text_encoder = text_encoder
        self.perceptual = perceptual
        self.contrastive = ContrastiveLoss(contrastive)
        adversarial = weights.adversarial
        self.adversarial = AdversarialLoss(adversarial, tower.image_size) if adversarial.weight else None

    def forward(self, batch: CaptionedBatch, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Each optimiser's loss, a scalar, and what there is to log."""
        images, output = batch.images, self.tower(batch.images)
        difference = output.reconstruction - images
        pixels = {"l1": difference.abs().mean(), "l2": difference.square().mean()}
        if self.perceptual is not None:
            pixels["perceptual"] = self.perceptual(output.reconstruction, images)
        codes: dict[str, Tensor] = {}
        if self.weights.contrastive:
            ids = torch.cat([batch.caption_ids, batch.negative_ids])
            own, others = self.text_encoder(ids).tensor_split([len(images)])
            codes["contrastive"] = self.contrastive(output.embedding, own, others, ids)
        codes |= {"commitment": output.commitment, "codebook": output.codebook}
        reconstruction = self.weights.weighted(pixels)
        total = reconstruction + self.weights.weighted(codes)
        log = {f"loss/{name}": term.detach() for name, term in {**pixels, **codes}.items()}
        if output.restarts is not None:
            log["codebook_restarts"] = output.restarts
        if self.adversarial is None or not self.adversarial.active(step):
            return {MAIN: total}, log
        term = self.adversarial.of_tower(output.reconstruction)
        scale = self.adversarial.scale(reconstruction, term, self.tower.decoder.last_weight)
        log.update({"loss/adversarial": term.detach(), "adversarial_scale": scale})
        # The tower's loss comes last: whatever goes backward before the last one keeps its activations till the end.
        return {
            DISCRIMINATOR: self.adversarial.of_discriminator(images, output.reconstruction),
            MAIN: total + self.weights.adversarial.weight * scale * term,
        }, log


class TowerTask(Task):
    """Trains the vision tower; measures and shows reconstructions of pictures it is not trained on."""

    unit = "images"
    other_optimizers = (DISCRIMINATOR,)

    def __init__(
        self,
        tower: VisionTower,
        text_encoder: TextEncoder,
        contrastive: ContrastiveConfig,
        weights: TowerLossConfig,
        test_images: npt.NDArray[np.uint8],
        perceptual: nn.Module | None = None,
        *,
        evaluation_batch: int,
    ) -> None:
        """perceptual: what `build_perceptual` makes of `weights.perceptual`. evaluation_batch: so many test pictures
        at most are reconstructed at a time; with a step's batch size, without gradients, they fit where a step did."""
        self.tower = tower
        self.text_encoder = text_encoder
        self.network: TowerObjective = TowerObjective(tower, text_encoder, contrastive, weights, perceptual)
        self.test_images = test_images
        self.evaluation_batch = evaluation_batch
        # Without the contrastive loss nothing comes back to the last layer and the pooling.
        self.may_skip_parameters = not weights.contrastive

    def parameter_groups(self) -> list[ParameterGroup]:
        network = self.network
        groups = matrix_groups(nn.ModuleList([network.tower, network.contrastive]))
        if network.adversarial is not None:
            weights = list(network.adversarial.parameters())
            groups.append(ParameterGroup(name=DISCRIMINATOR, parameters=weights, optimizer=DISCRIMINATOR))
        return groups

    def training_step(self, network: nn.Module, batch: CaptionedBatch, step: int) -> StepOutput:
        losses, log = network(batch, step)
        return StepOutput(losses, log)

    def batch_size(self, batch: CaptionedBatch) -> int:
        return len(batch.images)

    def after_step(self, step: int) -> None:
        self.network.contrastive.cap_scale()

    def sharding(self) -> Sharding:
        raise UserError(
            "training.parallel=fsdp2 is not for a vision tower: its EMA codebooks are statistics of the joint batch "
            "that every process needs whole, and two losses go through its weights at once; it fits one device, so "
            "use training.parallel=ddp"
        )

    def train_mode(self) -> None:
        self.network.train()
        self.text_encoder.eval()
        if self.network.perceptual is not None:
            self.network.perceptual.eval()

    def trained_state(self) -> dict[str, Tensor]:
        state = self.network.state_dict()
        return {name: value for name, value in state.items() if not _is_frozen(name)}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        frozen = {name: value for name, value in self.network.state_dict().items() if _is_frozen(name)}
        self.network.load_state_dict({**state, **frozen})

    def evaluate(self) -> dict[str, float]:
        total = 0.0
        for images, decoded in self._reconstructions(self.test_images):
            total += float(psnr(images, decoded).sum())
        return {"psnr": total / len(self.test_images)}

    def save_samples(self, directory: Path, step: int) -> None:
        originals = self.test_images[:SHEET_COLUMNS]
        decoded = np.concatenate([to_array(again) for _, again in self._reconstructions(originals)])
        sheet([list(originals), list(decoded)]).save(directory / "reconstructions.png")

    def _reconstructions(self, pictures: npt.NDArray[np.uint8]) -> Iterator[tuple[Tensor, Tensor]]:
        """Pictures uint8 [N, H, W, 3] and what their codes keep of them, float [B, 3, H, W], batch by batch."""
        for start in range(0, len(pictures), self.evaluation_batch):
            images = to_tensor(pictures[start : start + self.evaluation_batch]).to(self.tower.device)
            yield images, self.tower.decode(self.tower.encode(images))

    def save_model(self, directory: Path) -> None:
        self.tower.save_pretrained(directory)
        self.text_encoder.save_pretrained(directory / TEXT_ENCODER)


def _is_frozen(name: str) -> bool:
    """Whether the objective's weight `name` is in a part of `FROZEN`."""
    return name.split(".", 1)[0] in FROZEN


def matrix_groups(network: nn.Module) -> list[ParameterGroup]:
    """All trainable parameters: the weights of linear layers, which Muon may take and weight decay acts on, and
    the rest (embeddings, convolutions, norms, biases, scales)."""
    linear = {
        id(module.weight)
        for module in network.modules()
        if isinstance(module, nn.Linear) and module.weight.requires_grad
    }
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return [
        ParameterGroup(name="matrices", parameters=[p for p in trainable if id(p) in linear], matrices=True),
        ParameterGroup(
            name="other", parameters=[p for p in trainable if id(p) not in linear], weight_decay=0.0
        ),
    ]
