# 31: a handler that makes the runner import what it needs late, with impostors in the workspace.
async def handler(event):
    if event.get("fail"):
        raise ValueError("as it should")
    return {"answer": 42, "value": float("nan")}
