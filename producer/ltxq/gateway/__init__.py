"""The HTTP gateway: `/v1/videos`, which OpenAI's SDKs speak, and `/v1/jobs`, ltxq's own, over one
`Client`; with API keys, limits and a page. It holds no jobs: any replica answers for any of them.

app.py      the application: which routes there are, and what every request passes
serve.py    the process: socket, signals, shutdown
routes/     the paths: videos, jobs, events, probes, metrics, the page
openai/     the OpenAI-compatible API: requests, responses, errors, forms, description
reads/      jobs read for many callers at once; whether the gateway is ready
access/     API keys, rates, browsers, bounds on HTTP
models.py   which models it takes jobs for
state.py    what a route gets: the caller and the queue
page/       the page at /, as files
"""
