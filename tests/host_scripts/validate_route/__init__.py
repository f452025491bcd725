"""A pack for ComfyUI that answers what comfy-test asks before it runs a graph: POST /validate with a prompt."""

import execution
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}


@PromptServer.instance.routes.post("/validate")
async def validate(request):
    prompt = (await request.json())["prompt"]
    is_valid, error, _, node_errors = await execution.validate_prompt("validation", prompt, None)
    return web.json_response({"error": error, "node_errors": node_errors}, status=200 if is_valid else 400)
