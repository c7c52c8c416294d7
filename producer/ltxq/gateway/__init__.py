"""The HTTP gateway: `/v1/videos` for OpenAI's SDKs, `/v1/jobs` (ltxq's own API) and a web page,
all over one `Client`. It stores no jobs: any replica can answer any request.

serve.py    the process: socket, signals, shutdown
app.py      the application: routes, middleware, error answers
routes/     the paths: videos, jobs, events, probes, metrics, the page
state.py    what a route gets: the caller and the queue
reads/      reads jobs for many callers at once; readiness
access/     API keys, rate limits, browsers, limits on HTTP
openai/     the OpenAI-compatible API: requests, responses, errors, forms, description
models.py   which models it accepts jobs for
page/       files of the page at /

Each imports only those below it: a rule of import-linter.
"""
