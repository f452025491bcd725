// "Compare Images (One-Step SR)": shows two images in one frame with a slider between them.
import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"
import { keepNodeWidth } from "./widgets.js"

const NODE = "OneStepSRCompareImages"
const LEAST_HEIGHT = 240
const STYLE = `
.onestep-sr-compare { position: relative; width: 100%; height: 100%; min-height: ${LEAST_HEIGHT}px; --split: 50%; }
.onestep-sr-compare img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
.onestep-sr-compare img.after { clip-path: inset(0 0 0 var(--split)); }
.onestep-sr-compare .line { position: absolute; top: 0; bottom: 0; left: var(--split); width: 2px; margin-left: -1px;
  background: white; box-shadow: 0 0 3px black; pointer-events: none; }
.onestep-sr-compare input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0;
  cursor: ew-resize; }
.onestep-sr-compare:focus-within { outline: 2px solid var(--p-primary-color, #4b9fff); }
.onestep-sr-compare button { position: absolute; right: 4px; bottom: 4px; z-index: 1; }
.onestep-sr-compare:not(.filled) > * { display: none; }
`

const address = ({ filename, subfolder, type }) =>
  api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`)

function element(kind, parent, properties) {
  return parent.appendChild(Object.assign(document.createElement(kind), properties))
}

/** Returns the frame, and `show({ before, after })` for lists of images saved by the host. */
function comparison() {
  const frame = document.createElement("div")
  frame.className = "onestep-sr-compare"
  element("style", frame, { textContent: STYLE }) // in our own element: the page's head belongs to all packs
  const before = element("img", frame, { className: "before", alt: "before", draggable: false })
  const after = element("img", frame, { className: "after", alt: "after", draggable: false })
  element("div", frame, { className: "line" })
  const slider = element("input", frame, { type: "range", min: 0, max: 100, step: 0.5, value: 50 })
  slider.setAttribute("aria-label", "before / after")
  slider.addEventListener("input", () => frame.style.setProperty("--split", `${slider.value}%`))
  slider.addEventListener("pointerdown", (event) => event.stopPropagation()) // Nodes 2.0 would move the node as well
  const next = element("button", frame, { type: "button" })
  let pairs = []
  let shown = 0

  function select(index) {
    shown = index
    before.src = address(pairs[index][0])
    after.src = address(pairs[index][1])
    next.textContent = `${index + 1} / ${pairs.length}`
    next.hidden = pairs.length < 2
  }
  next.addEventListener("click", () => select((shown + 1) % pairs.length))

  function show({ before, after }) {
    const count = Math.max(before.length, after.length)
    pairs = Array.from({ length: count }, (_, i) => [before[i % before.length], after[i % after.length]])
    frame.classList.add("filled")
    select(0)
  }
  return { frame, show }
}

app.registerExtension({
  name: "onestepsr.compare",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    const { frame, show } = comparison()
    const widget = node.addDOMWidget("comparison", "onestep_sr_comparison", frame, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => LEAST_HEIGHT,
    })
    widget.serialize = false
    keepNodeWidth(widget)
    node.onestepCompare = show
    const { onExecuted } = node
    node.onExecuted = function (output, ...args) {
      if (output?.before?.length && output.after?.length) show(output)
      return onExecuted?.call(this, output, ...args)
    }
  },
  // A workflow that is reopened in the same session still has its images.
  loadedGraphNode(node) {
    const output = node.comfyClass === NODE ? app.nodeOutputs?.[node.id] : null
    if (output?.before?.length && output.after?.length) node.onestepCompare(output)
  },
})
