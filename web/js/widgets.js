// Widgets of a node: hide those without influence, and what to do with a seed after a run.
const CONTROL = "control_after_generate"
const LARGEST = Number.MAX_SAFE_INTEGER
const NEXT = {
  fixed: (seed) => seed,
  increment: (seed) => Math.min(seed + 1, LARGEST),
  decrement: (seed) => Math.max(seed - 1, 0),
  randomize: () => Math.floor(Math.random() * LARGEST),
}

export function show(node, name, isShown) {
  const widget = node.widgets?.find((each) => each.name === name)
  if (!widget || !!widget.hidden === !isShown) return
  widget.hidden = !isShown
  if (widget.options) widget.options.hidden = !isShown
  lookAgain(node)
  node.setSize?.([node.size[0], Math.max(node.size[1], node.computeSize()[1])])
  node.setDirtyCanvas?.(true, true)
}

// Nodes 2.0 only looks at widgets again when their list changes, and until front end 1.35 when a link does.
function lookAgain(node) {
  node.widgets.push(node.widgets.pop())
  node.graph?.trigger?.("node:slot-links:changed", { nodeId: node.id, slotType: LiteGraph.INPUT })
}

// The page's panel of a selected node gives widgets its own width, which the classic look would then use on the node.
export function keepNodeWidth(widget) {
  Object.defineProperty(widget, "width", { configurable: true, get: () => undefined, set: () => {} })
}

// The choice is kept in the node's properties and not among its values, whose order saved workflows rely on.
export function addSeedControl(node) {
  const seed = node.widgets?.find((widget) => widget.name === "seed")
  if (!seed) return
  const keep = (value) => (node.properties[CONTROL] = value)
  const options = { values: Object.keys(NEXT), serialize: false, advanced: seed.options?.advanced }
  const control = node.addWidget("combo", CONTROL, "fixed", keep, options)
  control.advanced = seed.advanced
  control.label = "control after generate"
  control.serialize = false
  control.afterQueued = () => {
    if (control.hidden || node.inputs?.some((input) => input.name === "seed" && input.link != null)) return
    seed.value = NEXT[control.value](seed.value)
    seed.callback?.(seed.value)
  }
  const { onConfigure } = node
  node.onConfigure = function (...args) {
    if (node.properties[CONTROL] in NEXT) control.value = node.properties[CONTROL]
    return onConfigure?.apply(this, args)
  }
}
