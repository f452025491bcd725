// The size and number of the images that come into a node, where the graph says it before the run; else null.
const UPSCALE = "OneStepSRUpscaleImage"
const ALWAYS = 0 // the mode of nodes that are neither muted nor bypassed
const SAME_SIZE = ["ImageInvert", "ImageBlur", "ImageSharpen", "ImageQuantize", "OneStepSRMatchColor"]
const SEVERAL_FRAMES = /\.(gif|webp|apng|tiff?)(\s*\[\w+\])?$/i

export const values = (node) => Object.fromEntries((node.widgets ?? []).map((widget) => [widget.name, widget.value]))

// Whether a value comes over a link, so that the widget's own is not used.
export const isLinked = (node, name) => !!node.inputs?.some((input) => input.name === name && input.link != null)

export function source(node, name) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1
  let origin = slot < 0 ? null : node.getInputNode(slot)
  while (origin?.type === "Reroute") origin = origin.getInputNode(0)
  return origin?.mode === ALWAYS ? origin : null
}

// As Python rounds: a half to the even number.
function round(value) {
  const up = Math.round(value)
  return value % 1 === 0.5 && up % 2 ? up - 1 : up
}

// How ComfyUI's own nodes resize: widgets, width, height -> [width, height].
const RESIZERS = {
  ImageScaleBy: ({ scale_by }, w, h) => [round(w * scale_by), round(h * scale_by)],
  ImageScale: ({ width, height }, w, h) => {
    if (!width && !height) return [w, h]
    return [width || Math.max(1, round((w * height) / h)), height || Math.max(1, round((h * width) / w))]
  },
  ImageScaleToTotalPixels: ({ megapixels, resolution_steps: steps = 1 }, w, h) => {
    const scale = Math.sqrt((megapixels * 1024 * 1024) / (w * h))
    return [round((w * scale) / steps) * steps, round((h * scale) / steps) * steps]
  },
  ImageScaleToMaxDimension: ({ largest_size }, w, h) => {
    if (h > w) return [round((w / h) * largest_size), largest_size]
    return [largest_size, w > h ? round((h / w) * largest_size) : largest_size]
  },
}

// [width, height, count] of the images at an input.
export function images(node, input) {
  const origin = source(node, input)
  if (!origin) return null
  if (origin.type === "LoadImage") return ofFile(origin)
  if (origin.type === "ImageBatch") return ofBatch(origin)
  const found = images(origin, "image")
  const isFixed = !origin.widgets?.some((widget) => isLinked(origin, widget.name))
  if (!found || !isFixed) return null
  const [width, height, count] = found
  if (origin.type === UPSCALE) return origin.onestepPlan?.size ? [...origin.onestepPlan.size, count] : null
  if (SAME_SIZE.includes(origin.type)) return found
  if (origin.type === "RepeatImageBatch") return [width, height, count * values(origin).amount]
  const resize = RESIZERS[origin.type]
  return resize ? [...resize(values(origin), width, height), count] : null
}

function ofFile(node) {
  const picture = node.imgs?.[0]
  if (!picture?.naturalWidth || isLinked(node, "image") || SEVERAL_FRAMES.test(values(node).image)) return null
  return [picture.naturalWidth, picture.naturalHeight, 1]
}

// The second image gets the first one's size.
function ofBatch(node) {
  const [first, second] = [images(node, "image1"), images(node, "image2")]
  return first && second ? [first[0], first[1], first[2] + second[2]] : null
}
