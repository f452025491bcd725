"""TAD-SeeSR's student on the weights of its teacher, SeeSR: only copies of some modules are in memory twice.

As published, the student learns its attentions to the picture, in the U-Net and the ControlNet, and the part of the
ControlNet that embeds the enlarged picture.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ...checkpoints.image_attention import joined
from ...checkpoints.weights_file import shortened
from ...diffusers_host.image_attention import ControlledUNet, TextThenImage, add_image_attentions, open_control
from ...diffusers_host.merge import replace_weights
from ...errors import UserError
from ...families.bases import unet_kind
from ...families.family import OneStepLora
from ...families.registry import read_lora
from ...families.tad_seesr import FILES
from ...families.tagger import Tagger
from ...files.whole import write_whole
from ..checkpoint import fingerprint
from .bases import UNET, Base, Condition, store_in_fp8
from .shared_base import Ranks, SharedBase

EMBEDDING = "controlnet_cond_embedding"
PUBLISHED_NAMES = (  # of the networks' own parts, after those of the student's copies
    (r"\.attentions\.(\d+)\.image\.learned\.", r".image_attentions.\1."),
    (r"\.attentions\.(\d+)\.text\.", r".attentions.\1."),
    (r"\.learned\.", "."),
)


@dataclass(frozen=True)
class Sight(Condition):
    """What the networks look at: `prompt` is from `joined`, `picture` (B, 3, 8h, 8w) in [0, 1]."""

    picture: Tensor

    def to(self, like: Tensor) -> Sight:
        return Sight(self.prompt.to(like), self.pooled.to(like), self.picture.to(like))


class Twin(nn.Module):
    """A frozen module and a copy of it that learns, in float32. `learns` says which one runs."""

    def __init__(self, frozen: nn.Module):
        super().__init__()
        self.frozen, self.learned, self.learns = frozen, copy.deepcopy(frozen).float().requires_grad_(True), False

    @property
    def config(self) -> Any:
        return self.frozen.config

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return (self.learned if self.learns else self.frozen)(*inputs, **options)


def _twins(network: nn.Module) -> list[Twin]:
    return [module for module in network.modules() if isinstance(module, Twin)]


@contextmanager
def _learning(network: nn.Module) -> Iterator[None]:
    """Run the student's copies for the time being."""
    twins = _twins(network)
    for twin in twins:
        twin.learns = True
    try:
        yield
    finally:
        for twin in twins:
            twin.learns = False


def _add_twins(network: ControlledUNet) -> None:
    for module in [each for each in network.modules() if isinstance(each, TextThenImage)]:
        module.image = Twin(module.image)
    setattr(network.control, EMBEDDING, Twin(getattr(network.control, EMBEDDING)))


def _call(network: Any, z_t: Tensor, timesteps: Tensor, condition: Any) -> Tensor:
    return network(z_t, condition.picture, timesteps, condition.prompt)


def _blocks(network: Any) -> list[nn.Module]:
    return [*UNET.blocks(network.unet), *network.control.down_blocks, network.control.mid_block]


CONTROLLED = replace(UNET, call=_call, blocks=_blocks)


class SeeSRBase(SharedBase):
    """The networks of SeeSR's files with the student's copies, and a tagger. Its conditions are `Sight`s, and the
    student starts from noise: see `noised`."""

    network: ControlledUNet

    def __init__(self, base: Base, seesr: OneStepLora, tagger: Tagger, *, start: Path | None = None, fp8: bool = False):
        """`base` is Stable Diffusion 2. `start`: a student of SeeSR to train further, as in `read_lora`, in place of a
        copy; `fp8`: as in `store_in_fp8`, for what the student shares with SeeSR.

        Raises UserError if SeeSR's files do not fit the base, or the student's do not fit SeeSR's.
        """
        unet: Any = base.network
        seesr.require_base(unet_kind(unet.config.cross_attention_dim, base.process.prediction), "the base")
        replace_weights(unet, seesr.replaced, seesr.sentence, whole=True)
        add_image_attentions(unet, seesr.image_attentions, seesr.sentence)
        network = ControlledUNet(unet, open_control(unet, seesr))
        _add_twins(network)
        if start is not None:
            _load_student(network, read_lora(start), seesr)
        if fp8:
            store_in_fp8(network)
        super().__init__(replace(base, family=CONTROLLED, network=network), Ranks(0, 0, 0), start=start)
        self.shared = _published_tensors(seesr)
        self.tagger, self.ram = tagger, tagger.network.requires_grad_(False)

    def _add_student(self, ranks: Ranks, start: Path | None) -> None:
        """The network already has the student's copies."""

    def enable_gradient_checkpointing(self) -> None:
        for network in (self.network.unet, self.network.control):
            network.enable_gradient_checkpointing()

    def student_parameters(self) -> list[nn.Parameter]:
        return [weight for twin in _twins(self.network) for weight in twin.learned.parameters()]

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "ram": fingerprint(self.ram.parameters())}

    def sight(self, prompt: Tensor, picture: Tensor, seen: Tensor, mode: str = "bilinear") -> Sight:
        """What the networks look at for encoded prompts (B, n, c), and a `picture` (B, 3, 8h, 8w) in [0, 1] of which
        the tagger sees `seen`, resized by `mode`."""
        embedding = self.tagger.embedding(seen, mode)
        return Sight(joined(prompt, embedding), prompt.new_zeros(len(prompt), 0), picture)

    def noised(self, z_lr: Tensor, noise: Tensor) -> Tensor:
        """z_t of the student's step, at the noisiest index."""
        return self.process.alpha[0] * z_lr + self.process.sigma[0] * noise

    def student(self, z_lr: Tensor, condition: Condition) -> Tensor:
        """z_s: x_0 in one evaluation, from `noised`."""
        with _learning(self.network):
            return super().student(z_lr, condition)

    @property
    def feature_widths(self) -> list[int]:
        return list(self.network.unet.config.block_out_channels)

    def features(self, z: Tensor, index: Tensor, condition: Condition) -> list[Tensor]:
        """The last feature of each level that skips to the decoder, with the ControlNet's part: in Stable Diffusion 2,
        skips 2, 5, 8 and 11."""
        skips: list[Tensor] = []
        keep = lambda module, inputs, named: skips.append(named["res_hidden_states_tuple"][-1])  # noqa: E731
        hooks = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in self.network.unet.up_blocks]
        try:
            self._x_0(z, index, condition)
        finally:
            for hook in hooks:
                hook.remove()
        return [skip.float() for skip in reversed(skips)]

    def save(self, folder: Path) -> None:
        """Write both networks whole, in half precision, under the published names, with their settings."""
        parts = (self.network.unet, self.network.control)
        for file, network, shared in zip(FILES, parts, self.shared, strict=True):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            settings = json.dumps({**json.loads(network.to_json_string()), "use_image_cross_attention": True}, indent=2)
            config = (folder / file).with_name("config.json")
            write_whole(config, lambda temporary, text=settings: temporary.write_text(text))
            tensors = {
                name: tensor.detach().to("cpu", torch.float16).contiguous()
                for name, tensor in {**shared, **_learned(network)}.items()
            }
            write_whole(folder / file, lambda temporary, tensors=tensors: save_file(tensors, temporary))


def _published_tensors(lora: OneStepLora) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of both published files. They stay on the disk as long as nothing reads them."""
    return {**lora.replaced, **lora.image_attentions}, {**lora.control}


def _learned(network: nn.Module) -> dict[str, nn.Parameter]:
    """The student's weights by their published names."""
    return {_published(name): weight for name, weight in network.named_parameters() if ".learned." in name}


def _load_student(network: ControlledUNet, student: OneStepLora, seesr: OneStepLora) -> None:
    """Give the copies the weights of a student. Raises UserError if it differs from SeeSR in other weights."""
    all_tensors = zip(_published_tensors(student), _published_tensors(seesr), strict=True)
    for part, (own, shared) in zip((network.unet, network.control), all_tensors, strict=True):
        learned = _learned(part)
        different = sorted(own.keys() ^ shared.keys())
        both = sorted(own.keys() & shared.keys())
        different += [name for name in both if not _fits(own[name], shared[name], name in learned)]
        if different:
            raise UserError(
                f"{student.name} is not a student of {seesr.name}, which has other weights where a student does not "
                f"learn ({shortened(different)}): give its own teacher as --teacher."
            )
        for name, weight in learned.items():
            weight.data.copy_(own[name])


def _fits(own: Tensor, shared: Tensor, learned: bool) -> bool:
    """Whether a student can have this weight; students are written in half precision."""
    return own.shape == shared.shape if learned else torch.equal(own.half(), shared.half())


def _published(name: str) -> str:
    for pattern, replacement in PUBLISHED_NAMES:
        name = re.sub(pattern, replacement, name)
    return name
