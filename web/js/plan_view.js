// Shows the estimated size, tiles, memory and time under "Upscale Image (One-Step SR)", before the run, and hides the
// inputs that have no influence. The server computes the estimate; this file finds the connected nodes and shows the
// answer. What it cannot know for certain, such as a value that comes over a link, it leaves out.
import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"
import { addSeedControl, keepNodeWidth, show } from "./widgets.js"
import { images, isLinked, source, values } from "./image_size.js"

const PREVIEW = "$$canvas-image-preview"
const NODE = "OneStepSRUpscaleImage"
const LOAD = "OneStepSRLoadModel"
const BUNDLED = "bundled"
const MODELS = [LOAD, "OneStepSRModel"]
const APPLY = "OneStepSRApplyLoRA"
const ASKED = ["upscale_by", "tile", "overlap", "size", "pixels", "megapixels", "wrap"]
const UPDATE_SECONDS = 0.5
// Of the line: whether the memory that the run needs is free.
const COLOURS = {
  fits: "#6b6",
  tight: "#da0",
  "too little": "#e66",
  unknown: "var(--descrip-text, #999)",
}
const SIDES = ["longest side", "shortest side", "width", "height"]

// The file of the LoRA that the model's MODEL comes from; null if it is not known.
function loraOf(model) {
  let origin = source(model, "model")
  while (origin && origin.type !== APPLY) origin = source(origin, "model")
  return origin && !isLinked(origin, "lora") ? values(origin).lora : null
}

function question(node) {
  const model = source(node, "sr_model")
  if (!MODELS.includes(model?.type) || ["model", "recipe"].some((name) => model.type === LOAD && isLinked(model, name))) return null
  const isKnown = !ASKED.some((name) => isLinked(node, name)) && !isLinked(node, "region")
  const [width, height, count] = (isKnown && images(node, "image")) || [0, 0, 1]
  const chosen = { ...values(model), lora: loraOf(model) }
  const asked = Object.fromEntries(ASKED.map((name) => [name, values(node)[name]]))
  return { node: model.type, model: chosen, width, height, count, ...asked }
}

async function update(node) {
  showInfluential(node)
  // A preview that was still loading when the run ended.
  if (node.imgs?.length && !app.nodePreviewImages?.[placeOf(node)]) clearPreview(node)
  const plan = node.onestepPlan
  const asked = JSON.stringify(question(node))
  if (asked === plan.asked) return
  plan.asked = asked
  const answer = asked === "null" ? null : await ask(asked)
  if (plan.asked !== asked) return
  plan.element.textContent = answer?.text ?? ""
  plan.element.style.color = COLOURS[answer?.level] ?? COLOURS.unknown
  plan.size = answer?.width ? [answer.width, answer.height] : null
  plan.noise = answer?.noise ?? null
}

async function ask(asked) {
  const headers = { "Content-Type": "application/json" }
  const response = await api.fetchApi("/onestep_sr/plan", { method: "POST", headers, body: asked })
  return response.ok ? response.json() : null
}

// A seed only matters for models that start from noise; where that is not known, it is shown.
function showInfluential(node) {
  const { size } = values(node)
  const isChosen = isLinked(node, "size")
  show(node, "upscale_by", isChosen || size === "factor")
  show(node, "pixels", isChosen || SIDES.includes(size))
  show(node, "megapixels", isChosen || size === "megapixels")
  for (const name of ["seed", "control_after_generate"]) show(node, name, node.onestepPlan.noise !== false)
}

// The bundled model has one recipe and no second file.
function foldBundled(node) {
  const isOther = isLinked(node, "model") || values(node).model !== BUNDLED
  for (const name of ["autoencoder", "recipe"]) show(node, name, isOther || isLinked(node, name))
}

// Calls `update` twice a second for as long as the node exists.
function keepUpdated(node, update) {
  const timer = setInterval(() => update(node), UPDATE_SECONDS * 1000)
  const { onRemoved } = node
  node.onRemoved = function (...args) {
    clearInterval(timer)
    // Nodes 2.0 would hide inputs of the same name of a node that gets the same number in the emptied graph.
    for (const { name } of node.widgets ?? []) show(node, name, true)
    return onRemoved?.apply(this, args)
  }
}

function addView(node) {
  const element = document.createElement("div")
  element.className = "onestep-sr-plan"
  element.setAttribute("role", "status")
  element.style.cssText = "font: 12px sans-serif; padding: 0 8px; overflow: auto;"
  const widget = node.addDOMWidget("plan", "onestep_sr_plan", element, {
    serialize: false,
    hideOnZoom: true,
    getMinHeight: () => 48,
    getMaxHeight: () => 48,
  })
  widget.serialize = false
  keepNodeWidth(widget)
  node.onestepPlan = { element, asked: "null", size: null, noise: null }
}

// The page keeps previews by the node's place in its graphs.
const placeOf = (node) => (node.graph?.isRootGraph === false ? `${node.graph.id}:${node.id}` : String(node.id))

// The last tile's rough preview is not the result. The page has a store of previews that extensions only reach through
// its other stores.
function clearPreview(node) {
  const place = placeOf(node)
  const store = app.extensionManager?._p?._s?.get("nodeOutput")
  store?.revokePreviewsByLocatorId?.(place) // not in the front end of ComfyUI 0.8.0
  for (const previews of [store?.nodePreviewImages, app.nodePreviewImages]) delete previews?.[place]
  node.imgs = undefined
  // The page's own preview cannot draw a node without images; it adds it again for the next one.
  const preview = node.widgets?.findIndex((widget) => widget.name === PREVIEW) ?? -1
  if (preview >= 0) node.widgets.splice(preview, 1)[0].onRemove?.()
  node.setDirtyCanvas?.(true, true)
}

app.registerExtension({
  name: "onestepsr.plan",
  nodeCreated(node) {
    if (node.comfyClass === LOAD) keepUpdated(node, foldBundled)
    if (node.comfyClass !== NODE) return
    addSeedControl(node)
    addView(node)
    keepUpdated(node, update)
    const { onExecuted } = node
    node.onExecuted = function (output, ...args) {
      node.onestepPlan.asked = "" // ask again, because a run improves the estimated time
      clearPreview(node)
      return onExecuted?.call(this, output, ...args)
    }
  },
})
