// Offers weights that a node is set to and that are missing: a line with the file, size, licence, address and folder,
// and a button. The server knows the files and fetches them; this file only shows its answer.
import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"
import { keepNodeWidth } from "./widgets.js"

const NODES = ["OneStepSRLoadModel", "OneStepSRApplyLoRA", "OneStepSRTags"]
const UPDATE_SECONDS = 0.5
const LINE_HEIGHT = 100

const values = (node) => Object.fromEntries((node.widgets ?? []).map((widget) => [widget.name, widget.value]))

async function ask(node, press = {}) {
  const body = JSON.stringify({ widgets: values(node), ...press })
  const headers = { "Content-Type": "application/json" }
  const response = await api.fetchApi("/onestep_sr/downloads", { method: "POST", headers, body })
  return response.ok ? response.json() : { files: [], by_hand: [] }
}

async function update(node, press) {
  const asked = JSON.stringify(values(node))
  const state = node.onestepDownloads
  if (!press && asked === state.asked && !state.lines) return
  state.asked = asked
  const answer = await ask(node, press)
  if (asked !== state.asked) return
  const { files, by_hand } = answer
  const arrived = state.files.some((name) => !files.some((file) => file.name === name)) && state.runs
  state.files = files.map((file) => file.name)
  state.runs = files.some((file) => file.runs)
  show(node, files, by_hand)
  if (arrived) app.refreshComboInNodes()
}

function show(node, files, byHand) {
  const state = node.onestepDownloads
  const shown = JSON.stringify([files, byHand])
  if (shown === state.shown) return
  state.shown = shown
  const lines = [...files.map((file) => lineOf(node, file)), ...byHand.map(sentence)]
  if (lines.length !== state.lines) resize(node, lines.length)
  state.widget?.element.replaceChildren(...lines)
}

// The widget is there only while there is something to show.
function resize(node, lines) {
  const state = node.onestepDownloads
  state.lines = lines
  if (lines && !state.widget) addView(node)
  if (!lines && state.widget) {
    node.removeWidget(state.widget)
    state.widget = null
  }
  node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])])
  node.setDirtyCanvas(true, true)
}

function addView(node) {
  const state = node.onestepDownloads
  const view = element("div", "")
  view.className = "onestep-sr-downloads"
  view.setAttribute("role", "status")
  view.style.cssText = "font: 12px sans-serif; color: var(--descrip-text, #999); padding: 0 8px; overflow: auto;"
  const height = () => LINE_HEIGHT * state.lines
  const options = { serialize: false, hideOnZoom: true, getMinHeight: height, getMaxHeight: height }
  state.widget = node.addDOMWidget("downloads", "onestep_sr_downloads", view, options)
  state.widget.serialize = false
  keepNodeWidth(state.widget)
}

function lineOf(node, { name, text, runs, error }) {
  const line = sentence(error && !runs ? `${error} ${text} ` : `${text} `)
  const button = element("button", runs ? "Cancel" : "Download")
  button.type = "button"
  button.addEventListener("click", () => update(node, runs ? { cancel: name } : { start: name }))
  line.append(button)
  return line
}

// A line of text whose addresses can be clicked.
function sentence(text) {
  const line = element("div", "")
  line.style.overflowWrap = "anywhere"
  line.append(...text.split(/(https?:\/\/\S+)/).map((part, index) => (index % 2 ? link(part) : part)))
  return line
}

function link(address) {
  const anchor = Object.assign(element("a", address), { href: address, target: "_blank", rel: "noreferrer" })
  anchor.style.color = "inherit"
  return anchor
}

function element(kind, text) {
  return Object.assign(document.createElement(kind), { textContent: text })
}

app.registerExtension({
  name: "onestepsr.downloads",
  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass)) return
    node.onestepDownloads = { asked: "", shown: "", lines: 0, files: [], runs: false, widget: null }
    const timer = setInterval(() => update(node), UPDATE_SECONDS * 1000)
    const { onRemoved } = node
    node.onRemoved = function (...args) {
      clearInterval(timer)
      return onRemoved?.apply(this, args)
    }
  },
})
