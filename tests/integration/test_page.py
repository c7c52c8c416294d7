"""The page at `/` in a real Chromium, over a real gateway, Redis, S3 server and worker."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, Route, expect
from test_client import LedgerWorker

from browser import chromium
from fleet import Fleet, eventually, worker_environment
from gateways import Gateway
from ltxq import Client
from ltxq.errors import JobError
from ltxq.gateway.access.keys import new_key
from ltxq.job import VideoRequest
from ltxq.settings import Settings
from ltxq_worker.embedded.servers import RedisServer, S3Server
from ltxq_worker.pipeline.instant import read_mark
from servers import start_or_skip
from variants import variants

PROMPT = "a red fox trots through fresh snow"
PATIENCE_MS = 10_000
PLAYED = """video => new Promise((done) => {
    const look = () => video.currentTime > 0.2 && done();
    video.addEventListener("timeupdate", look);
    look();
})"""
FAILED = JobError(
    code="out_of_memory", message="The card cannot hold it.", hint="Make it smaller: 512×320."
)

expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page in a fresh profile; at the end, its console must have had no error."""
    opened: list[Page] = []
    wrong: list[str] = []

    def open_it(url: str, **options: object) -> Page:
        page = browser.new_context(**options).new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "console",
            lambda said: (
                wrong.append(said.text)
                if said.type == "error" and "Failed to load resource" not in said.text
                else None
            ),
        )
        opened.append(page)
        page.goto(url)
        return page

    yield open_it
    for page in opened:
        page.context.close()
    assert wrong == []


@pytest.fixture(scope="module")
def environment(
    s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """Settings of gateway and worker, with a new Redis."""
    folder = tmp_path_factory.mktemp("page")
    with start_or_skip(lambda: RedisServer.start(folder)) as server:
        yield worker_environment(server.url, s3_server, folder / "spool")


@pytest.fixture(scope="module")
def started(browser: Browser, environment: dict[str, str]) -> Iterator[Gateway]:
    with Gateway(environment) as running:
        yield running


@pytest.fixture
def gateway(started: Gateway, environment: dict[str, str]) -> Gateway:
    """One gateway for all tests; each test has an empty queue."""
    with redis.Redis.from_url(environment["LTXQ_URL"], socket_timeout=5) as connection:
        connection.flushdb()
    return started


@pytest.fixture
def worker(environment: dict[str, str]) -> Iterator[LedgerWorker]:
    """A worker that the test controls."""
    made = LedgerWorker(Settings(url=environment["LTXQ_URL"]))
    yield made
    made.ledger.close()


def submit(page: Page, prompt: str = PROMPT, *, size: str = "Draft") -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_text(size, exact=True).click()
    page.get_by_label("Length").fill("1")
    page.get_by_role("button", name="Make the clip").click()


def queue(page: Page) -> Locator:
    return page.get_by_role("region", name="In the queue").get_by_role("listitem")


def clips(page: Page) -> Locator:
    return page.get_by_role("region", name="Clips").get_by_role("listitem")


def flawless(page: Page) -> None:
    """axe-core finds no accessibility error: names, roles, contrast, focus, landmarks."""
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_a_prompt_becomes_a_clip_that_plays_with_sound(
    environment: dict[str, str], gateway: Gateway, open_page: Callable[..., Page]
) -> None:
    page = open_page(gateway.url)
    expect(page.get_by_text("No worker is ready")).to_be_visible()
    submit(page)
    expect(queue(page)).to_contain_text("Next in the queue")
    with Fleet(environment) as fleet:
        fleet.wait_until_ready()
        expect(page.get_by_text("1 worker ready")).to_be_visible()
        expect(clips(page)).to_contain_text(PROMPT)
        expect(clips(page)).to_contain_text("384×256 · with sound · just now")
        expect(queue(page)).to_have_count(0)
        expect(page.locator("#said")).to_have_text(f"The clip is ready: {PROMPT}")
        assert page.locator(".poster img").evaluate(
            "img => img.decode().then(() => img.naturalWidth)"
        ) == 384  # fmt: skip
        flawless(page)
        page.get_by_role("button", name=f"Play: {PROMPT}").click()
        video = page.locator("video")
        expect(video).to_be_focused()
        video.evaluate(PLAYED)
        sound = "video => [video.webkitAudioDecodedByteCount > 0, video.error]"
        assert video.evaluate(sound) == [True, None]
        flawless(page)
        page.keyboard.press("Escape")
        expect(page.get_by_role("button", name=f"Play: {PROMPT}")).to_be_focused()
        page.reload()
        expect(clips(page)).to_contain_text(PROMPT)


SHOWN = """video => {
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    const context = canvas.getContext("2d");
    context.drawImage(video, 0, 0);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    return [canvas.width, canvas.height, btoa(String.fromCharCode.apply(null,
        Array.from({ length: data.length / 4 }, (_, i) => data[4 * i])))];
}"""
SOUGHT = """(video, seconds) => new Promise((done, failed) => {
    video.addEventListener("seeked", () => done(video.currentTime), { once: true });
    video.addEventListener("error", () => failed(video.error.message), { once: true });
    video.currentTime = seconds;
})"""


def frame_shown(video: Locator) -> int:
    """The number of the frame that a <video> shows, read from its mark."""
    width, height, red = video.evaluate(SHOWN)
    grey = np.frombuffer(base64.b64decode(red), np.uint8).reshape(height, width)
    return read_mark(np.repeat(grey[..., None], 3, axis=2)).index


def test_a_viewer_seeks_before_playing_where_the_gateway_sends_the_clip(
    environment: dict[str, str], gateway: Gateway, open_page: Callable[..., Page]
) -> None:
    """With an API key, which a <video> does not send."""
    key = new_key("viewer")
    settings = {**environment, "LTXQ_CONTENT": "proxy", "LTXQ_API_KEYS": key.entry}
    with Fleet(environment) as fleet, Gateway(settings) as proxying:
        fleet.wait_until_ready()
        with Client(proxying.url, api_key=key.key) as client:
            fields = {"width": 256, "height": 192, "num_frames": 121, "frame_rate": 24}
            job = client.wait(client.submit(PROMPT, **fields).id, 120)
        page = open_page(proxying.url)
        page.get_by_label("Key", exact=True).fill(key.key)
        page.get_by_role("button", name="Continue").click()
        expect(clips(page)).to_contain_text(PROMPT)
        assert page.locator(".poster img").evaluate(
            "img => img.decode().then(() => img.naturalWidth)"
        ) == 256  # fmt: skip
        page.evaluate("HTMLMediaElement.prototype.play = () => Promise.resolve()")
        asked = []
        page.on("response", lambda answer: asked.append((answer.status, answer.url)))
        page.get_by_role("button", name=f"Play: {PROMPT}").click()
        video = page.locator("video")
        for second, index in ((4.02, 96), (1.02, 24), (5.0, 120)):
            assert abs(video.evaluate(SOUGHT, second) - second) < 0.001
            assert frame_shown(video) == index
        assert video.evaluate("video => video.paused && video.played.length === 0")
        seekable = video.evaluate("video => [video.seekable.length, video.seekable.end(0)]")
        assert seekable == [1, pytest.approx(121 / 24, abs=0.05)]
        sent = [status for status, url in asked if "/content?" in url]
        assert sent
        assert set(sent) == {206}
        link = video.evaluate("video => video.currentSrc")
        assert link == job.result_or_raise().url or link.startswith(
            f"{proxying.url}/v1/videos/{job.id}/content?"
        )
        # The link by itself, in a tab of its own, and the name of the file.
        alone = page.context.new_page()
        alone.goto(link)
        assert 2.999 < alone.locator("video").evaluate(SOUGHT, 3) < 4  # it plays in that tab
        expect(page.get_by_role("link", name="Open the MP4")).to_have_attribute(
            "href", re.compile(r"^v1/videos/.*signature=")
        )


@pytest.mark.parametrize("way", variants("events", extended=("polling",)))
def test_progress_arrives_by_events_or_by_polling(
    way: str, gateway: Gateway, worker: LedgerWorker, open_page: Callable[..., Page]
) -> None:
    page = open_page(gateway.url)
    if way == "polling":
        page.route(re.compile("/events$"), lambda route: route.abort())
    submit(page, "first")
    submit(page, "second")
    expect(queue(page)).to_have_count(2)
    expect(queue(page).nth(1)).to_contain_text("1 ahead in the queue")
    first = queue(page).filter(has_text="first")
    job_id = first.get_attribute("data-id") or ""
    if way == "events":
        page.route(re.compile(r"/v1/jobs\?"), lambda route: route.abort())
    worker.start(job_id)
    worker.report(job_id, "denoise", 3, 8, 0.4)
    expect(first).to_contain_text("Denoising 3/8")
    bar = first.get_by_role("progressbar", name="Progress of: first")
    expect(bar).to_have_js_property("value", 40)
    expect(queue(page).filter(has_text="second")).to_contain_text("Next in the queue")
    flawless(page)


@pytest.mark.extended
def test_an_answer_older_than_the_last_event_changes_nothing(
    gateway: Gateway, worker: LedgerWorker, open_page: Callable[..., Page]
) -> None:
    """A read of the queue that was sent before the job started and answered after that."""
    page = open_page(gateway.url)
    lists, late = re.compile(r"/v1/jobs\?"), []
    submit(page, "first")
    first = queue(page).filter(has_text="first")
    expect(first).to_contain_text("Next in the queue")
    page.route(lists, lambda route: late.append((route, route.fetch())))
    eventually(lambda: page.wait_for_timeout(20) or len(late) == 3)
    page.route(lists, lambda route: route.abort())
    worker.start(job_id := first.get_attribute("data-id") or "")
    worker.report(job_id, "denoise", 3, 8, 0.4)
    expect(first).to_contain_text("Denoising 3/8")
    for route, answer in late:
        route.fulfill(response=answer)
    expect(
        page.get_by_role("alert").filter(has_text="does not answer")
    ).to_be_visible()  # the next look
    expect(first).to_contain_text("Denoising 3/8")


def test_a_hidden_tab_holds_no_connection(gateway: Gateway, open_page: Callable[..., Page]) -> None:
    page = open_page(gateway.url)
    with page.expect_request("**/events"):
        submit(page)
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/events")):
        page.evaluate("""() => {
            Object.defineProperty(document, "hidden", { value: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }""")


def test_a_job_is_cancelled_retried_and_deleted(
    gateway: Gateway, worker: LedgerWorker, open_page: Callable[..., Page]
) -> None:
    page = open_page(gateway.url)
    submit(page)
    page.get_by_role("button", name=f"Cancel: {PROMPT}").click()
    expect(clips(page)).to_contain_text("Cancelled")
    expect(page.locator("#said")).to_contain_text("Cancelled")
    page.get_by_role("button", name=f"Try again: {PROMPT}").click()
    expect(queue(page)).to_contain_text("Next in the queue")
    page.get_by_role("button", name=f"Delete: {PROMPT}").click()
    sure = page.get_by_role("dialog", name="Delete this clip?")
    flawless(page)
    sure.get_by_role("button", name="Keep it").click()
    expect(clips(page)).to_have_count(1)
    page.get_by_role("button", name=f"Delete: {PROMPT}").click()
    sure.get_by_role("button", name="Delete").click()
    expect(clips(page)).to_have_count(0)
    page.get_by_role("button", name=f"Cancel: {PROMPT}").click()
    expect(queue(page)).to_have_count(0)


def test_an_error_is_shown_with_what_to_do(
    gateway: Gateway, worker: LedgerWorker, open_page: Callable[..., Page]
) -> None:
    page = open_page(gateway.url)
    submit(page, "   ")
    expect(page.locator("#form-error")).to_contain_text("Prompt: must not be blank.")
    prompt = page.get_by_label("Prompt", exact=True)
    expect(prompt).to_be_focused()
    expect(prompt).to_have_attribute("aria-invalid", "true")
    flawless(page)
    submit(page)
    expect(page.locator("#form-error")).to_be_empty()
    worker.fail(queue(page).get_attribute("data-id") or "", FAILED)
    for said in ("Failed", FAILED.message, FAILED.hint):
        expect(clips(page)).to_contain_text(said)
    expect(page.locator("#said")).to_contain_text(FAILED.message)
    flawless(page)


LONG = "A red fox trots through fresh snow. " * 20 + "The end."


def test_what_failed_for_good_is_offered_for_changing_not_for_trying_again(
    gateway: Gateway, worker: LedgerWorker, open_page: Callable[..., Page]
) -> None:
    page = open_page(gateway.url)
    page.get_by_text("16:9", exact=True).click()
    page.get_by_text("Seed, priority and model").click()
    page.get_by_label("Priority").select_option("low")
    submit(page, LONG)
    worker.fail(queue(page).get_attribute("data-id") or "", FAILED)
    tile = clips(page)
    expect(tile).to_contain_text("Failed")
    expect(tile.get_by_role("button", name=re.compile("^Try again"))).to_have_count(0)
    page.reload()
    assert page.get_by_label("Prompt", exact=True).input_value() == ""
    tile.get_by_role("button", name="Change and try again").click()
    prompt = page.get_by_label("Prompt", exact=True)
    expect(prompt).to_be_focused()
    expect(prompt).to_have_value(LONG)
    expect(page.locator("#pixels")).to_have_text("448×256")
    expect(page.get_by_label("Length")).to_have_value("1")
    expect(page.locator("#priority")).to_have_value("low")
    flawless(page)


def test_what_may_succeed_later_can_be_tried_again(
    gateway: Gateway, worker: LedgerWorker, open_page: Callable[..., Page]
) -> None:
    page = open_page(gateway.url)
    submit(page)
    lost = JobError(code="worker_lost", message="Its worker died.", retryable=True)
    worker.fail(queue(page).get_attribute("data-id") or "", lost)
    expect(clips(page).get_by_role("button", name="Change and try again")).to_be_hidden()
    clips(page).get_by_role("button", name=f"Try again: {PROMPT}").click()
    expect(queue(page)).to_contain_text("Next in the queue")


@pytest.mark.parametrize("width", [390, 1280])
def test_a_long_prompt_can_be_read_whole(
    gateway: Gateway, worker: LedgerWorker, width: int, open_page: Callable[..., Page]
) -> None:
    page = open_page(gateway.url, viewport={"width": width, "height": 900})
    submit(page, LONG)

    def is_cut_and_can_be_read(place: Locator) -> None:
        prompt, cut = place.locator(".prompt"), "p => p.scrollHeight > p.clientHeight + 1"
        expect(prompt).to_have_text(LONG)
        assert prompt.evaluate(cut)
        place.get_by_role("button", name="Show the whole prompt").click()
        assert not prompt.evaluate(cut)
        flawless(page)
        place.get_by_role("button", name="Show less").click()
        assert prompt.evaluate(cut)

    is_cut_and_can_be_read(queue(page))
    worker.fail(queue(page).get_attribute("data-id") or "", FAILED)
    is_cut_and_can_be_read(clips(page))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_label("Prompt", exact=True).fill("short")
    page.get_by_role("button", name="Make the clip").click()
    expect(queue(page)).to_have_count(1)
    expect(queue(page).get_by_role("button", name="Show the whole prompt")).to_be_hidden()


@pytest.mark.extended
def test_a_submission_with_lost_answers_makes_no_second_clip(
    gateway: Gateway, open_page: Callable[..., Page]
) -> None:
    page = open_page(gateway.url)
    lost: list[int] = []

    def lose(route: Route) -> None:
        """The gateway executes the request; the browser gets no answer."""
        lost.append(route.fetch().status)
        route.abort()

    posted = re.compile(r"/v1/jobs(/.*/retry)?$")

    def click(button: Locator) -> None:
        """All answers are lost; then the user clicks again."""
        lost.clear()
        page.route(posted, lambda route: lose(route) if is_post(route) else route.continue_())
        button.click()
        expect(page.get_by_text("Sending it again makes no second clip").first).to_be_visible()
        assert lost == [201, 201, 201]
        page.unroute(posted)
        press(button)

    def press(button: Locator) -> None:
        """Click, and wait for the answer."""
        with page.expect_response(lambda answer: answer.request.method == "POST") as answered:
            button.click()
        assert answered.value.ok

    submit(page)
    expect(queue(page)).to_have_count(1)
    page.get_by_label("Prompt", exact=True).fill("another")
    click(page.get_by_role("button", name="Make the clip"))
    expect(queue(page)).to_have_count(2)
    press(page.get_by_role("button", name="Make the clip"))  # another wish for the same
    expect(queue(page)).to_have_count(3)
    press(page.get_by_role("button", name=f"Cancel: {PROMPT}"))
    expect(queue(page)).to_have_count(2)
    click(page.get_by_role("button", name=f"Try again: {PROMPT}"))
    expect(queue(page)).to_have_count(3)
    expect(page.locator("#trouble")).to_be_empty()
    with Client(gateway.url) as client:
        assert len(client.list().jobs) == 4


def is_post(route: Route) -> bool:
    return route.request.method == "POST"


def test_an_outage_of_the_queue_is_shown_until_it_is_back(
    environment: dict[str, str], tmp_path: Path, open_page: Callable[..., Page]
) -> None:
    first = RedisServer.start(tmp_path)
    with Gateway({**environment, "LTXQ_URL": first.url}) as gateway:
        page = open_page(gateway.url)
        submit(page)
        expect(queue(page)).to_have_count(1)
        first.stop()
        expect(page.locator("#trouble")).to_contain_text("cannot reach its queue")
        with RedisServer.start(tmp_path, port=first.port):
            expect(page.locator("#trouble")).to_be_empty()
            expect(queue(page)).to_have_count(1)


def test_the_page_asks_for_a_key_and_keeps_it_for_the_tab(
    environment: dict[str, str], open_page: Callable[..., Page]
) -> None:
    mine = new_key("alice")
    with Gateway({**environment, "LTXQ_API_KEYS": mine.entry}) as gateway:
        page = open_page(gateway.url)
        asked = page.get_by_role("dialog", name="API key")
        flawless(page)
        asked.get_by_label("Key").fill("ltxq_wrong")
        page.keyboard.press("Enter")
        expect(asked).to_contain_text("The gateway does not know this key.")
        asked.get_by_label("Key").fill(mine.key)
        asked.get_by_role("button", name="Continue").click()
        expect(asked).to_be_hidden()
        submit(page)
        expect(queue(page)).to_have_count(1)
        page.reload()
        expect(queue(page)).to_have_count(1)
        assert page.evaluate("[document.cookie, localStorage.length]") == ["", 0]
        page.get_by_role("button", name="Forget the API key").click()
        expect(asked).to_be_visible()
        expect(queue(page)).to_have_count(0)
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Enter the API key").click()
        expect(asked).to_be_visible()


def test_the_whole_page_works_with_the_keyboard(
    gateway: Gateway, worker: LedgerWorker, open_page: Callable[..., Page]
) -> None:
    page = open_page(gateway.url)
    keys = page.keyboard

    def tab_to(name: str, role: str = "button") -> None:
        target = page.get_by_role(role, name=name)
        for _ in range(30):
            keys.press("Tab")
            if target.evaluate("element => element === document.activeElement"):
                return
        raise AssertionError(f"{name} is not reached by Tab")

    tab_to("Prompt", "textbox")
    keys.type(PROMPT)
    tab_to("3:2", "radio")
    keys.press("ArrowRight")
    tab_to("Standard", "radio")
    keys.press("ArrowLeft")
    tab_to("Length", "slider")
    keys.press("Home")
    tab_to("With sound", "checkbox")
    keys.press("Space")
    tab_to("Make the clip")
    keys.press("Enter")
    expect(queue(page)).to_contain_text("448×256 · 0.4 s · no sound")
    tab_to(f"Cancel: {PROMPT}")
    keys.press("Enter")
    expect(clips(page)).to_contain_text("Cancelled")
    expect(page.get_by_role("heading", name="In the queue")).to_be_focused()
    tab_to(f"Delete: {PROMPT}")
    keys.press("Enter")
    expect(page.get_by_role("button", name="Keep it")).to_be_focused()
    keys.press("Shift+Tab")
    keys.press("Enter")
    expect(clips(page)).to_have_count(0)
    expect(page.get_by_role("heading", name="Clips")).to_be_focused()
    page.get_by_label("Prompt", exact=True).focus()
    keys.press("Control+Enter")
    expect(queue(page)).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_the_page_without_horizontal_scrolling(
    gateway: Gateway, worker: LedgerWorker, scheme: str, open_page: Callable[..., Page]
) -> None:
    page = open_page(
        gateway.url, viewport={"width": 320, "height": 640}, color_scheme=scheme,
        reduced_motion="reduce",
    )  # fmt: skip
    submit(page, "x" * 300)
    expect(queue(page)).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    for group in ("Size", "Shape"):
        for box in page.get_by_role("group", name=re.compile(group)).locator("label").all():
            size = box.bounding_box()
            assert size is not None
            assert min(size["width"], size["height"]) >= 24  # WCAG 2.5.8
    flawless(page)


def test_every_size_that_can_be_chosen_can_be_made(
    gateway: Gateway, open_page: Callable[..., Page]
) -> None:
    page = open_page(gateway.url)
    chosen = page.evaluate("""async () => {
        const { request } = await import("/page/words.js");
        const form = document.querySelector("form");
        form.prompt.value = "a fox";
        const all = [];
        for (const shape of form.elements.shape) for (const size of form.elements.size)
            for (const length of [1, 59]) {
                shape.checked = size.checked = true;
                document.querySelector("#length").value = length;
                all.push(request(new FormData(form)));
            }
        return all;
    }""")
    assert len(chosen) == 30
    made = [VideoRequest.parse(fields) for fields in chosen]
    assert max(request.duration for request in made) > 19


def test_a_prompt_with_html_is_shown_as_text(
    gateway: Gateway, open_page: Callable[..., Page]
) -> None:
    page = open_page(gateway.url)
    evil = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'
    submit(page, evil)
    expect(queue(page)).to_contain_text(evil)
    assert page.evaluate("window.hit") is None
    policy = page.evaluate("fetch('/').then(a => a.headers.get('content-security-policy'))")
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
