// Shows the estimated size, tiles, memory and time under "Upscale Image (One-Step SR)", before the run.
// The server computes the estimate; this file only finds the connected nodes and shows the answer.
import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"

const NODE = "OneStepSRUpscaleImage"
const MODELS = ["OneStepSRLoadModel", "OneStepSRModel"]
const APPLY = "OneStepSRApplyLoRA"
const UPDATE_SECONDS = 0.5

function source(node, name) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1
  let origin = slot < 0 ? null : node.getInputNode(slot)
  while (origin?.type === "Reroute") origin = origin.getInputNode(0)
  return origin
}

const values = (node) => Object.fromEntries((node.widgets ?? []).map((widget) => [widget.name, widget.value]))

function imageSize(node) {
  const origin = source(node, "image")
  if (!origin) return null
  if (origin.type === NODE) return origin.onestepPlan?.size ?? null
  const picture = origin.imgs?.[0]
  return picture?.naturalWidth ? [picture.naturalWidth, picture.naturalHeight] : (node.onestepLastSize ?? null)
}

// The file of the LoRA that the model's MODEL comes from; null if there is none.
function loraOf(model) {
  let origin = source(model, "model")
  while (origin && origin.type !== APPLY) origin = source(origin, "model")
  return origin ? values(origin).lora : null
}

function question(node) {
  const model = source(node, "sr_model")
  const size = imageSize(node)
  if (!MODELS.includes(model?.type) || !size) return null
  const { upscale_by, tile, overlap } = values(node)
  const chosen = { ...values(model), lora: loraOf(model) }
  return { node: model.type, model: chosen, width: size[0], height: size[1], upscale_by, tile, overlap }
}

async function update(node) {
  const plan = node.onestepPlan
  const asked = JSON.stringify(question(node))
  if (asked === plan.asked) return
  plan.asked = asked
  const answer = asked === "null" ? null : await ask(asked)
  if (plan.asked !== asked) return
  plan.element.textContent = answer?.text ?? ""
  plan.size = answer?.width ? [answer.width, answer.height] : null
}

async function ask(asked) {
  const headers = { "Content-Type": "application/json" }
  const response = await api.fetchApi("/onestep_sr/plan", { method: "POST", headers, body: asked })
  return response.ok ? response.json() : null
}

function addView(node) {
  const element = document.createElement("div")
  element.className = "onestep-sr-plan"
  element.setAttribute("role", "status")
  element.style.cssText = "font: 12px sans-serif; color: var(--descrip-text, #999); padding: 0 8px; overflow: auto;"
  const widget = node.addDOMWidget("plan", "onestep_sr_plan", element, {
    serialize: false,
    hideOnZoom: true,
    getMinHeight: () => 48,
    getMaxHeight: () => 48,
  })
  widget.serialize = false
  node.onestepPlan = { element, asked: "null", size: null }
}

app.registerExtension({
  name: "onestepsr.plan",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    addView(node)
    const timer = setInterval(() => update(node), UPDATE_SECONDS * 1000)
    const { onRemoved, onExecuted } = node
    node.onRemoved = function (...args) {
      clearInterval(timer)
      return onRemoved?.apply(this, args)
    }
    node.onExecuted = function (output, ...args) {
      node.onestepLastSize = output?.image_size
      node.onestepPlan.asked = "" // ask again, because a run improves the estimated time
      return onExecuted?.call(this, output, ...args)
    }
  },
})
