"""The HTTP gateway: `/v1/videos`, as OpenAI's SDKs speak it, and `/v1/jobs`, ltxq's own, over one
`Client`; with API keys, limits and a page. It holds no jobs: any replica answers for any of them.

app.py             the application: what is mounted where, and what every request passes
videos.py, jobs.py the two tongues' routes
shortcuts.py       the two routes asked most, answered sooner
events.py, news.py a job's changes, as they happen
fields.py          an OpenAI request → a VideoRequest
video.py           a Job → a video object
forms.py           multipart and JSON bodies, bounded
failures.py        every error → the envelope and its status
keys.py, rates.py  who asks, and how much they may
state.py           the caller of a request
queue.py           `Client` for an event loop: threads, reads joined, changes followed
guard.py           browsers, and what strangers' pages may not
probes.py          /healthz and /readyz
metrics.py         what was asked and how long it took
documents.py       /docs and /openapi.json
static.py, page/   the page at /
serve.py           the process: socket, signals, end
protocol.py        HTTP with bounds on heads and time
"""
