"""The PatchGAN discriminator (Isola et al. 2017, section 3.2.2), as VQGAN and RQ-VAE train against it.

Convolutions of 4x4 pixels, each but the first behind a norm; one number for each patch of the picture, above 0
where it looks real.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vilau_common.errors import UserError

WIDEST = 8  # times the first layer's channels
LEAK = 0.2  # slope of LeakyReLU below 0
INITIAL_STD = 0.02  # pix2pix, appendix 6.2


@dataclass(kw_only=True)
class DiscriminatorConfig:
    """channels: of the first layer; each further one doubles them, up to 8 times. layers: convolutions that halve
    the side (3 see patches of 70 pixels). groups: of GroupNorm."""

    channels: int = 64
    layers: int = 3
    groups: int = 32

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise UserError(f"discriminator.layers is {self.layers}, but at least 1 is needed")
        if self.groups < 1 or self.channels % self.groups:
            raise UserError(
                f"discriminator.groups is {self.groups}, which does not divide the {self.channels} channels"
            )


class PatchDiscriminator(nn.Module):
    """float [B, 3, H, W] in [-1, 1] -> logits float32 [B, h, w], one a patch.

    GroupNorm in place of pix2pix's BatchNorm: a picture's logits then depend on no other picture, neither of its
    batch (real or fake) nor of another process, and there are no running statistics to keep equal over processes.

    Initialisation: convolutions from N(0, 0.02), norms and biases as PyTorch's.
    """

    def __init__(self, config: DiscriminatorConfig, image_size: int) -> None:
        super().__init__()
        # Each halving rounds down, and each of the last two convolutions takes one off.
        if image_size // 2**config.layers < 3:
            raise UserError(
                f"discriminator.layers is {config.layers}, which leaves nothing of {image_size} pixels; take fewer"
            )
        widths = [config.channels * min(2**layer, WIDEST) for layer in range(config.layers + 1)]
        blocks: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(LEAK)]
        for layer in range(1, config.layers + 1):
            stride = 2 if layer < config.layers else 1
            blocks += [
                nn.Conv2d(widths[layer - 1], widths[layer], 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(config.groups, widths[layer]),
                nn.LeakyReLU(LEAK),
            ]
        self.body = nn.Sequential(*blocks)
        self.output = nn.Conv2d(widths[-1], 1, 4, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=INITIAL_STD)

    def forward(self, images: Tensor) -> Tensor:
        # float32 whatever autocast does: the losses are means of many logits.
        return self.output(self.body(images)).squeeze(1).float()
