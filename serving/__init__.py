"""Shows films while they are made: a desk that steers them, an engine that keeps time, a server for a page.

Only `live.py` imports this room, and nothing but this room imports starlette and uvicorn.
"""
