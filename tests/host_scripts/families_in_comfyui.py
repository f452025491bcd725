"""Runs inside ComfyUI's own interpreter, from its folder: families on Stable Diffusion 2.1 through the pack's host
layer, to floats.

python families_in_comfyui.py FOLDER_OF_ONESTEP_SR CASES.pt RESULTS.pt

A case by name: as in unet_in_comfyui.py, and `strengths` (of the LoRA's adapters) for each result.
`texts`, if it has them, are prompts of a batch by their texts, `part` is a converted file that lacks keys, `scale` is
that of the result, `recipe` a recipe to choose, and `other` another method's LoRA.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

package, cases, result = sys.argv[1:]
sys.argv = [sys.argv[0], "--cpu"]
sys.path[:0] = [".", package, str(Path(__file__).parents[1])]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sd  # noqa: E402
import null_host  # noqa: E402
import torch  # noqa: E402
import utils.extra_config  # noqa: E402, F401 (before server.py puts comfy/utils.py in its way, as main.py does)
from onestep_sr.nodes import host_lora, host_sampler, host_sd  # noqa: E402
from onestep_sr.nodes import stable_diffusion as nodes  # noqa: E402
from onestep_sr.sr_models.canvas.color import match  # noqa: E402
from onestep_sr.sr_models.canvas.noise import canvas_noise  # noqa: E402
from onestep_sr.sr_models.canvas.resize import resize  # noqa: E402
from onestep_sr.sr_models.core.options import UpscaleOptions  # noqa: E402
from onestep_sr.sr_models.core.region import upscale_regions  # noqa: E402
from onestep_sr.sr_models.core.upscale import upscale  # noqa: E402
from onestep_sr.sr_models.families.registry import read_lora  # noqa: E402
from small_checkpoints import opened, read  # noqa: E402


def stock_parts(model, vae, conditioning, image, negative=None, tile=None, overlap=None, batch=1):
    """VAE Encode -> SamplerCustomAdvanced with BasicGuider or CFGGuider -> VAE Decode, and the method's colours."""
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": conditioning} | ({"negative": negative} if negative else {}))
    latent, seen = vae.encode(image.movedim(1, -1)), []
    sampler = host_sampler.OneStepSampler(tile, overlap, batch)
    recipe = host_sd.carried_by(model).lora
    recipe = recipe.family.recipe(recipe.recipe)
    guider.set_cfg(recipe.guidance)
    # Where the method starts from noise, it is that of the upscale node for seed 0.
    sigmas, noise = torch.tensor([1.0, 0.0]), canvas_noise(latent, 0) * recipe.step.noises
    sampled = guider.sample(noise, latent, sampler, sigmas, callback=lambda *given: seen.append(given[0]), seed=1)
    return match(vae.decode(sampled).movedim(-1, 1).clamp(0, 1), image, recipe.color).clamp(0, 1), seen


def counting(model, counted):
    def run(apply_model, arguments):
        counted.append(float(arguments["timestep"][0]))
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    model.set_model_unet_function_wrapper(run)


def sentence(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


class Asked:
    """A CLIP that remembers the text."""

    def tokenize(self, text):
        self.text = text

    def encode_from_tokens_scheduled(self, tokens):
        return "encoded"


def through_nodes(case, base_model, base_vae, conditioning):
    """Apply, Prompt, Model and Sampler as a graph runs them, with two pairs of strengths."""
    files = {name: {"lora": case[name], "vae_lora": "auto"} for name in ("lora", "other")}
    graph = {name: {"class_type": nodes.APPLY_ID, "inputs": chosen} for name, chosen in files.items()}
    nodes.ApplyLoRA.hidden, reads, read_file = SimpleNamespace(unique_id="1", prompt=graph), [], nodes.read_lora
    nodes.read_lora = lambda *paths: reads.append(Path(paths[0]).name) or read_file(*paths)
    shared = {"model": base_model, "vae": base_vae, "strength_model": 1.0, "strength_vae": 1.0}
    inputs, other = shared | files["lora"], shared | files["other"]
    found, clip = {}, Asked()
    for name, pixel, semantic in (("published", 1.0, 1.0), ("two runs", 2.0, 0.5)):
        model, vae = nodes.ApplyLoRA.execute(**inputs, strength_pixel=pixel, strength_semantic=semantic).args
        sr_model = nodes.Model.execute(model, vae, conditioning, "auto").args[0].model
        sr_model = replace(sr_model, recipe=replace(sr_model.recipe, shortest=0))
        found[name] = upscale(sr_model, case["image"], UpscaleOptions(1))
        nodes.ApplyLoRA.execute(**other)
    nodes.Prompt.execute(["from LoRA"], ["not this one"], [clip], [model])
    nodes.ApplyLoRA.hidden.prompt = {"other": graph["other"]}
    for chosen in (other, inputs):
        nodes.ApplyLoRA.execute(**chosen)
    nodes.read_lora = read_file
    sampler = nodes.Sampler.execute(0, 8, 1).args[0]
    return found | {"reads": reads, "text": clip.text, "sampler": (sampler.tile, sampler.overlap)}


class Known:
    """A CLIP that knows some texts."""

    def __init__(self, prompts):
        self.prompts = prompts

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, text):
        return [[self.prompts[text], {"pooled_output": torch.zeros(1, 0)}]]


def with_texts(case, model, vae):
    """A batch with a text per image, and each image alone; the third text has more tokens."""
    image, clip, texts = case["image"], Known(case["texts"]), list(case["texts"])
    images = torch.cat([image, 1 - image, image**2])

    def prompts(texts, per_image):
        return nodes.Prompt.execute(["from text"], texts, [clip], text_per_image=[per_image]).args[0]

    def run(conditioning, images, work=upscale, **more):
        sr_model = nodes.Model.execute(model, vae, conditioning, "auto").args[0].model
        sr_model = replace(sr_model, recipe=replace(sr_model.recipe, shortest=0))
        return work(sr_model, images, options=UpscaleOptions(1, tile=64, overlap=16), **more)

    each, [batch], [lines] = prompts(texts, False), prompts(texts, True), prompts(["\n".join(texts)], True)
    pairs, [equal] = list(zip(each, images.split(1), strict=True)), prompts(texts[:2], True)
    sampled = [stock_parts(model, vae, own, one, tile=8, overlap=2)[0] for own, one in pairs[:2]]
    at_once = stock_parts(model, vae, equal, images[:2], tile=8, overlap=2, batch=2)[0]
    regions = {"work": upscale_regions, "masks": torch.ones(3, 1, 8, 8)}
    return {
        "alone": torch.cat([run(*pair) for pair in pairs]),
        "batch": run(batch, images),
        "lines": run(lines, images),
        "regions": run(batch, images, **regions),
        "sampled alone": torch.cat(sampled),
        "sampled": at_once,
        "sentences": [
            sentence(run, batch, images[:2]),
            sentence(stock_parts, model, vae, batch, images[:2]),
            sentence(stock_parts, model, vae, batch, images),
            sentence(prompts, [], True),
        ],
    }


def needed(model, vae, base_vae, conditioning, negative):
    """The sentences for a graph of a LoRA that depends on the picture which lacks a connection."""
    opened_without = [(model, vae, conditioning, "auto"), (model, base_vae, conditioning, "auto", negative)]
    return [sentence(host_lora.open_model, *given) for given in opened_without]


def mixed(other, model, vae, base_vae, conditioning):
    """The sentences for a graph with LoRAs of two methods on one MODEL or VAE."""
    return [
        sentence(host_lora.apply_lora, model, other, 1.0),
        sentence(host_lora.apply_vae_lora, vae, other, 1.0),
        sentence(host_lora.open_model, model, host_lora.apply_vae_lora(base_vae, other, 1.0), conditioning, "auto"),
    ]


def results_of(case):
    image, conditioning = case["image"], [[case["prompt"], {"pooled_output": torch.zeros(1, 0)}]]
    scale = case.get("scale", 1)
    enlarged = resize(image, (scale * image.shape[-2], scale * image.shape[-1])).clamp(0, 1)
    base_model, base_vae = opened(case), comfy.sd.VAE(sd=read(Path(case["folder"]) / "vae"))
    before = {name: tensor.clone() for name, tensor in base_model.model.state_dict().items()}
    vae_before = {name: tensor.clone() for name, tensor in base_vae.first_stage_model.state_dict().items()}
    lora, results = read_lora(Path(case["lora"])), {}
    negative = [[case["negative"], {"pooled_output": torch.zeros(1, 0)}]] if "negative" in case else None
    for name, strengths in case["strengths"].items():
        model, notices = host_lora.apply_lora(base_model, lora.at(strengths), 1.0)
        vae, counted = host_lora.apply_vae_lora(base_vae, lora, 1.0), []
        counting(model, counted)
        sr_model = host_lora.open_model(model, vae, conditioning, "auto", negative).model
        sr_model = replace(sr_model, recipe=replace(sr_model.recipe, shortest=0))
        if lora.modulator is not None:
            upscale(sr_model, 1 - image, UpscaleOptions(1))  # leaves nothing behind
            del counted[:]
        whole = upscale(sr_model, image, UpscaleOptions(scale))
        runs = len(counted)
        tiled = upscale(sr_model, image, UpscaleOptions(scale, tile=64, overlap=16))
        if "recipe" in case:
            chosen = host_lora.open_model(model, vae, conditioning, case["recipe"]).model
            chosen = replace(chosen, recipe=replace(chosen.recipe, shortest=0))
            results["chosen recipe"] = upscale(chosen, image, UpscaleOptions(scale))
        if lora.modulator is not None:
            results["sentences"] = needed(model, vae, base_vae, conditioning, negative)
        if lora.needs_picture:
            results["no picture"] = sentence(stock_parts, model, vae, conditioning, enlarged, negative)
            fixed = nodes._for_image(lora.at(strengths), image.movedim(1, -1))
            (model, _), vae = (
                host_lora.apply_lora(base_model, fixed, 1.0),
                host_lora.apply_vae_lora(base_vae, fixed, 1.0),
            )
        if negative is not None:
            results["sentences"].append(sentence(stock_parts, model, vae, conditioning, image))
        parts, seen = stock_parts(model, vae, conditioning, enlarged, negative)
        tiled_parts, tiles_seen = stock_parts(model, vae, conditioning, enlarged, negative, tile=8, overlap=2)
        results[name] = {"whole": whole, "parts": parts, "runs": runs, "sigmas": counted[:runs], "notices": notices}
        results[name] |= {"tiled": tiled, "tiled parts": tiled_parts, "seen": seen, "tiles seen": tiles_seen}
        results[name] |= {"prompt": host_lora.prompt_of(model), "recipe": sr_model.recipe.name}
    if "two runs" in case["strengths"]:
        results["nodes"] = through_nodes(case, base_model, base_vae, conditioning)
    if lora.modulator is None:
        results["plain VAE"] = host_lora.open_model(model, base_vae, conditioning, "auto").warnings
    if "other" in case:
        results["mixed"] = mixed(read_lora(Path(case["other"])), model, vae, base_vae, conditioning)
    if "part" in case:
        results["part"] = sentence(host_lora.apply_lora, base_model, read_lora(Path(case["part"])), 1.0)
    if "texts" in case:
        results["texts"] = with_texts(case, model, vae)
    other = opened(case | {"kind": "2.1"})
    results["refused"] = sentence(host_lora.apply_lora, other, lora, 1.0)
    comfy.model_management.unload_all_models()
    results["as it was"] = all(torch.equal(t, before[name]) for name, t in base_model.model.state_dict().items())
    state = base_vae.first_stage_model.state_dict()
    results["VAE as it was"] = all(torch.equal(t, vae_before[name]) for name, t in state.items())

    def run(base_model, base_vae):
        model, _ = host_lora.apply_lora(base_model, lora.at(strengths), 1.0)
        vae = host_lora.apply_vae_lora(base_vae, lora, 1.0)
        sr_model = host_lora.open_model(model, vae, conditioning, "auto", negative).model
        sr_model = replace(sr_model, recipe=replace(sr_model.recipe, shortest=0))
        upscale(sr_model, image, UpscaleOptions(scale, tile=64, overlap=16))
        if not lora.needs_picture:
            stock_parts(model, vae, conditioning, enlarged, negative, tile=8, overlap=2)

    results["mixed devices"] = null_host.mixed(run, base_model, base_vae)
    return results


torch.set_grad_enabled(False)  # as the host runs its nodes
torch.save({kind: results_of(case) for kind, case in torch.load(cases).items()}, result)
