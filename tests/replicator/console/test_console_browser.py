"""The console in a real Chromium: reading with and without JavaScript, live pages, acts by keyboard, accessibility.

One browser and one mirror for the whole file.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from replicator.console.console_app import HEADERS
from replicator.mirror.tokens import Tokens
from tests.fakes.histories.history import History
from tests.fakes.histories.mirror_world import make_volume
from tests.fakes.patience import PATIENCE_S
from tests.fakes.targets.mirror_process import Client, MirrorProcess

CHROMIUM = shutil.which("chromium")
pytest.importorskip("playwright", reason="tools/setup --test installs playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: tools/setup --test does it")
HOSTILE = "<img src=x onerror=\"document.title='owned'\">\u202egnp"
SWITCHES = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
"""As root Chromium has no sandbox; the rest keeps it from asking for hosts of its maker."""
Open = Callable[..., Any]


def is_complaint(message: Any) -> bool:
    """An answer that is a refusal counts as an error in the browser's log, and is not what is looked for."""
    return message.type in ("error", "warning") and not message.text.startswith("Failed to load resource")


def push(client: Client, history: History, *numbers: int) -> None:
    for record in (record for record in history.records if record.number in numbers):
        for part in history.parts(client.lacks(history.numbers(record)), 100):  # type: ignore[arg-type]
            client.put(part)
        client.commit([record])


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    made = History(tmp_path_factory.mktemp("source") / "store", 3)
    made.grow(2)
    made.grow(1, name=HOSTILE)
    made.grow(1)
    made.grow(1, name="came-later")
    made.part(made.numbers(*made.records))  # all its segments are open before a test begins
    yield made
    made.close()


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory, history: History) -> Iterator[MirrorProcess]:
    root = tmp_path_factory.mktemp("mirror") / "root"
    made = MirrorProcess(root, "--console")
    make_volume(root, "long", 120, time.time_ns())
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def client(process: MirrorProcess, history: History) -> Client:
    made = process.client()
    made.create()
    made.claim(1)
    push(made, history, 1, 2, 3, 4)
    return made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=CHROMIUM, args=list(SWITCHES))
        yield made
        made.close()


@pytest.fixture
def visit(browser: Any, process: MirrorProcess, client: Client) -> Iterator[Open]:
    """Opens pages in contexts of their own. What the browser complained of, or asked elsewhere, fails the test."""
    contexts, wrong = [], list[str]()
    base = f"http://127.0.0.1:{process.port}/"

    def opened(right: str = "", alone: bool = True, **options: Any) -> Any:
        context = browser.new_context(base_url=base, **options)
        context.set_default_timeout(PATIENCE_S * 1000)
        contexts.append(context)
        if alone:
            context.on("request", lambda request: request.url.startswith(base) or wrong.append(f"asked {request.url}"))
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text) if is_complaint(message) else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        if right:
            login(page, token(process, right))
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def token(process: MirrorProcess, right: str) -> str:
    return Tokens(str(process.root / "tokens.json")).create({"*": right}, f"the {right}")[1]


def login(page: Any, text: str) -> None:
    page.goto("/console/login")
    page.get_by_label("Token").fill(text)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("heading", name="Volumes").wait_for()


def violations(page: Any) -> list[str]:
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{page.url}: {each['id']}: {node['html']}" for each in found for node in each["nodes"]]


def test_a_wrong_token_and_a_good_one(visit: Open, process: MirrorProcess) -> None:
    page = visit()
    answer = page.goto("/console/volumes/pg")
    assert page.url.endswith("/console/login")
    assert {name: answer.all_headers()[name.lower()] for name in HEADERS} == HEADERS
    page.get_by_label("Token").fill("snapfs_00000000_" + "A" * 43)
    with page.expect_response("**/login") as tried:
        page.get_by_role("button", name="Log in").click()
    assert tried.value.status == 403
    assert "does not know that token" in page.get_by_role("alert").inner_text()
    secret = token(process, "read")
    login(page, secret)
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/console")
    assert secret not in page.content() + cookie["value"] + page.url
    assert page.evaluate("document.cookie") == ""


def test_reading_takes_no_javascript(visit: Open) -> None:
    page = visit("read", java_script_enabled=False)
    assert page.get_by_role("table", name="The volumes kept").get_by_role("rowheader").count() == 2
    page.get_by_role("link", name="1 to look at").click()
    assert page.get_by_role("rowheader").inner_text().split() == ["long", "drill", "failed"]
    page.get_by_role("link", name="long").click()
    table = page.get_by_role("table", name="Snapshots of long")
    assert table.get_by_role("row").count() == 51
    assert table.get_by_role("columnheader").all_inner_texts()[:5] == [
        "Snapshot",
        "Cut",
        "Sealed",
        "Received",
        "Verified",
    ]
    assert page.get_by_role("img", name="Lag: longest").count() == 1
    page.get_by_role("navigation", name="Pages of the timeline").get_by_role("link", name="Older").click()
    assert page.get_by_role("rowheader").first.inner_text().strip().startswith("70")
    drills = page.get_by_role("table", name="Trial recoveries")
    assert "failed" in drills.inner_text()
    assert "30 s" in drills.inner_text()
    page.get_by_role("link", name="Audit log").click()
    assert page.get_by_role("table").get_by_role("row").count() == 5
    assert page.get_by_text("does not follow what happens now").is_visible()
    assert page.locator("#live").is_hidden()


def test_a_page_follows_a_push_and_shows_names_as_text(visit: Open, client: Client, history: History) -> None:
    page = visit("read")
    page.goto("/console/volumes/pg")
    page.locator("#live[data-state=live]").wait_for()
    assert page.locator("#still").is_hidden()
    assert "<img src=x onerror=" in page.locator("bdi.name").inner_text()
    assert page.title() == "pg · snapfs"
    assert page.locator("img").count() == 0
    link = page.get_by_role("link", name="2", exact=True)
    link.focus()
    push(client, history, 5)
    page.get_by_text("came-later").wait_for()
    page.get_by_text("pg is up to date again").wait_for(state="attached")  # what a screen reader says
    assert page.evaluate("document.activeElement.textContent") == "2", "the focus stays where it was"


def test_hold_and_drop_by_keyboard_alone(visit: Open, client: Client) -> None:
    page = visit("admin")
    page.goto("/console/volumes/pg/snapshots/1")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")

    def tab_to(text: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            at = "document.activeElement"
            if text in (page.evaluate(f"{at}.innerText || {at}.name || ''") or ""):
                assert page.evaluate(f"getComputedStyle({at}).outlineStyle") == "solid", "the focus is seen"
                return
        raise AssertionError(f"no way to {text!r} by keyboard")

    tab_to("Hold…")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Hold snapshot 1").wait_for()
    assert page.evaluate("document.activeElement.name") == "why"
    page.keyboard.type("the audit")
    tab_to("Hold snapshot 1")
    page.keyboard.press("Enter")
    page.get_by_role("status").get_by_text("Snapshot 1 is held for 30 days.").wait_for()
    assert "the audit" in page.get_by_role("list").last.inner_text()
    tab_to("Drop…")
    page.keyboard.press("Enter")
    page.get_by_label("To confirm").wait_for()
    page.keyboard.type("1")
    with page.expect_response("**/drop") as refused:
        page.keyboard.press("Enter")
    assert refused.value.status == 409
    assert "it is held" in page.get_by_role("alert").inner_text()
    assert 1 in [snapshot.decoded().number for snapshot in client.snapshots().snapshots]
    page.goto("/console/volumes/pg/audit")
    assert "the admin" in page.get_by_role("row").nth(1).inner_text()


def test_a_form_of_another_site_does_nothing(visit: Open, process: MirrorProcess, client: Client) -> None:
    """The browser is logged in, and another site sends it a form that would hold a snapshot."""
    page = visit("admin", alone=False)
    page.goto("/console/volumes/pg/snapshots/2/hold")
    secret = page.locator("input[name=csrf]").first.input_value()
    evil = f"http://localhost:{process.port}"  # another site: not the host that the cookie is of
    other = page.context.new_page()
    other.route(f"{evil}/", lambda route: route.fulfill(body="<title>evil</title>", content_type="text/html"))
    other.goto(f"{evil}/")
    with other.expect_response("**/hold") as answered:
        other.evaluate(
            """([to, csrf]) => {
                const form = document.createElement("form");
                form.method = "post"; form.action = to;
                for (const [name, value] of [["csrf", csrf], ["days", "7"]]) {
                    const field = document.createElement("input");
                    field.name = name; field.value = value; form.append(field);
                }
                document.body.append(form); form.submit();
            }""",
            [f"http://127.0.0.1:{process.port}/console/volumes/pg/snapshots/2/hold", secret],
        )
    assert answered.value.status in (401, 403)
    page.goto("/console/volumes/pg/snapshots/2")
    assert "Held" not in page.content()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1360), ("dark", 390)])
def test_pages_are_accessible(visit: Open, process: MirrorProcess, scheme: str, width: int) -> None:
    page = visit(color_scheme=scheme, viewport={"width": width, "height": 900})
    page.goto("/console/login")
    found = violations(page)
    login(page, token(process, "admin"))
    for path in (
        "",
        "volumes/long",
        "volumes/pg",
        "volumes/pg/audit",
        "volumes/long/snapshots/25",
        "volumes/pg/snapshots/2/hold",
        "volumes/pg/promote",
        "volumes/none",
    ):
        page.goto(f"/console/{path}")
        found += violations(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path} is wider than the window"
    assert found == []
