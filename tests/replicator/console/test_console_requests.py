"""The console over real sockets: who sees what, which forms count, and what an act leaves behind."""

from __future__ import annotations

import http.client
import json
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
import trustme

from replicator.console.console_app import HEADERS
from replicator.console.login_rate import BURST
from replicator.mirror.tokens import Tokens
from snapfs.base.blocks import Disk
from snapfs.store.log.log_lines import Event
from snapfs.store.log.snapshot_log import SnapshotLog
from tests.fakes.histories.history import History
from tests.fakes.patience import PATIENCE_S
from tests.fakes.targets.mirror_process import Client, MirrorProcess

HOSTILE = '<img src=x onerror=alert(1)>\u202e"gnp'
FORM = "application/x-www-form-urlencoded"


class Visitor:
    """A browser without a window: one cookie, and the forms of the pages that it has read."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._port, self._tls = port, tls
        self.origin: str | None = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        self.cookie = self.csrf = ""
        self.headers: dict[str, str] = {}
        """Of the last answer."""

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, str]:
        kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        more = {"context": self._tls} if self._tls else {}
        connection = kind("127.0.0.1", self._port, timeout=PATIENCE_S, **more)
        try:
            connection.request(method, f"/console{path}", body, {"Cookie": self.cookie, **headers})
            answer = connection.getresponse()
            self.headers, text = dict(answer.getheaders()), answer.read().decode()
        finally:
            connection.close()
        found = re.search(r'name="csrf" value="([^"]+)"', text)
        self.csrf = found[1] if found else self.csrf
        return answer.status, text

    def get(self, path: str) -> str:
        status, text = self.ask("GET", path)
        assert status == 200, (path, status, text)
        return text

    def post(self, path: str, **fields: str) -> tuple[int, str]:
        origin = {"Origin": self.origin} if self.origin is not None else {}
        return self.ask("POST", path, urlencode(fields), **origin, **{"Content-Type": FORM})

    def login(self, token: str) -> int:
        status, _ = self.post("/login", token=token)
        self.cookie = self.headers.get("Set-Cookie", "").partition(";")[0]
        if status == 303:
            self.get("/")
        return status

    def act(self, path: str, **fields: str) -> tuple[int, str]:
        return self.post(path, csrf=self.csrf, **fields)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    made = History(tmp_path_factory.mktemp("source") / "store", 3)
    made.grow(2)
    made.grow(1, name=HOSTILE)
    made.grow(1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory, history: History) -> Iterator[MirrorProcess]:
    made = MirrorProcess(tmp_path_factory.mktemp("mirror") / "root", "--console")
    made.start()
    client = made.client()
    client.create()
    client.claim(1)
    push(client, history)
    yield made
    made.stop()


def push(client: Client, history: History, *, after: int = 0) -> None:
    for record in history.records:
        if record.number > after:
            for part in history.parts(client.lacks(history.numbers(record)), 40):  # type: ignore[arg-type]
                client.put(part)
            client.commit([record])


def token(process: MirrorProcess, right: str, note: str = "", volume: str = "pg") -> str:
    return Tokens(str(process.root / "tokens.json")).create({volume: right}, note)[1]


@pytest.fixture
def admin(process: MirrorProcess) -> Visitor:
    made = Visitor(process.port)
    assert made.login(token(process, "admin", "ops <b>laptop</b>")) == 303
    return made


def events(process: MirrorProcess) -> list[Event]:
    log = SnapshotLog(str(process.root / "pg" / "store" / "snapshots.log"), Disk(), readonly=True)
    try:
        return list(log.follow())
    finally:
        log.close()


def test_without_a_token_nothing_is_known(process: MirrorProcess) -> None:
    stranger = Visitor(process.port)
    for path in ("/", "/volumes/pg", "/volumes/none", "/volumes/pg/snapshots/1/drop", "/nothing"):
        status, text = stranger.ask("GET", path)
        assert (status, text, stranger.headers["Location"]) == (303, "", "/console/login")
        assert {name: stranger.headers[name] for name in HEADERS} == HEADERS
    assert stranger.ask("GET", "/events")[0] == 401
    assert stranger.post("/volumes/pg/promote", confirm="pg", holder="me")[0] == 401
    login = stranger.get("/login")
    assert "pg" not in login
    assert "without TLS" in login
    for wrong in ("", "snapfs_00000000_" + "A" * 43, "x" * 1000):
        status, text = stranger.post("/login", token=wrong)
        assert (status, "does not know" in text, "Set-Cookie" in stranger.headers) == (403, True, False)
    stranger.cookie = "snapfs-console=" + "A" * 43
    assert stranger.ask("GET", "/")[0] == 303
    css = stranger.ask("GET", "/static/console.css")
    assert css[0] == 200
    assert stranger.headers["Content-Type"].startswith("text/css")
    assert stranger.ask("GET", "/static/..%2Fconsole_app.py")[0] == 404


def test_a_token_sees_its_volumes_and_a_reader_does_not_act(process: MirrorProcess) -> None:
    reader = Visitor(process.port)
    assert reader.login(token(process, "read", volume="other")) == 303
    assert "pg" not in reader.get("/")
    assert reader.ask("GET", "/volumes/pg")[0] == reader.ask("GET", "/volumes/nowhere")[0] == 404
    assert reader.login(token(process, "read")) == 303
    page = reader.get("/volumes/pg")
    assert 'href="/console/volumes/pg/snapshots/4"' in page
    assert "Promote" not in page
    assert "Drop" not in reader.get("/volumes/pg/snapshots/2")
    for path, fields in (("snapshots/2/drop", {"confirm": "2"}), ("promote", {"confirm": "pg", "holder": "x"})):
        assert reader.ask("GET", f"/volumes/pg/{path}")[0] == 403
        assert reader.act(f"/volumes/pg/{path}", **fields)[0] == 403
    assert [event.kind for event in events(process)].count("dropped") == 0


def test_names_are_text_and_nothing_else(admin: Visitor) -> None:
    for path in ("/volumes/pg", "/volumes/pg/snapshots/3", "/volumes/pg/snapshots/3/hold"):
        page = admin.get(path)
        assert "&lt;img src=x onerror=alert(1)&gt;\\u202e" in page
        assert "<img" not in page
        assert "\u202e" not in page
        assert "ops &lt;b&gt;laptop&lt;/b&gt;" in page
        assert not re.search(r"<script(?! src=)|\sstyle=", page), "what the policy forbids"


def test_an_act_takes_a_form_of_this_session_from_this_site(process: MirrorProcess, admin: Visitor) -> None:
    asked = "/volumes/pg/snapshots/2/hold"
    good = admin.origin
    for origin in ("http://evil.example", "null", None, f"{good}0"):
        admin.origin = origin
        assert admin.act(asked, days="7")[0] == 403, origin
    admin.origin = good
    for csrf in ("", "A" * 43, "\udcff"):
        assert admin.post(asked, csrf=csrf.encode("utf-8", "surrogateescape"), days="7")[0] == 403  # type: ignore[arg-type]
    other = Visitor(process.port)
    other.login(token(process, "admin"))
    assert admin.post(asked, csrf=other.csrf, days="7")[0] == 403
    assert admin.ask("POST", asked, "{}", Origin=str(good), **{"Content-Type": "application/json"})[0] == 400
    assert admin.post(asked, csrf=admin.csrf, why="x" * 20000)[0] == 413
    assert not [event for event in events(process) if event.kind == "held"]


def test_acts_are_confirmed_and_recorded_with_the_tokens_name(process: MirrorProcess, admin: Visitor) -> None:
    """Hold, a drop that the hold refuses, release, drop, promote: each is a line of the log."""
    at = "/volumes/pg/snapshots/2"
    assert "Nothing on this mirror drops it" in admin.get(f"{at}/hold")
    assert admin.act(f"{at}/hold", days="7", why="the <audit>")[0] == 303
    page = admin.get(at)
    assert "is held for 7 days" in page
    assert "the &lt;audit&gt;" in page
    assert "is held for 7 days" not in admin.get(at), "said once"
    status, page = admin.act(f"{at}/drop", confirm="2")
    assert (status, "it is held: release it first" in page) == (409, True)
    assert admin.act(f"{at}/release")[0] == 303
    assert admin.act(f"{at}/release")[0] == 409
    status, page = admin.act(f"{at}/drop", confirm="3")
    assert (status, "write the snapshot&#39;s number" in page) == (409, True)
    assert admin.act(f"{at}/drop", confirm="2")[0] == 303
    assert admin.ask("GET", at)[0] == 404
    status, page = admin.act("/volumes/pg/snapshots/4/drop", confirm="4")
    assert (status, "it is the newest" in page) == (409, True)
    assert "host-a" in admin.get("/volumes/pg/promote")
    assert admin.act("/volumes/pg/promote", confirm="no", holder="host-b")[0] == 409
    assert admin.act("/volumes/pg/promote", confirm="pg", holder="no spaces")[0] == 409
    assert admin.act("/volumes/pg/promote", confirm="pg", holder="host-b")[0] == 303
    found = [event for event in events(process) if event.kind != "snapshot"][-4:]
    assert [event.kind for event in found] == ["held", "released", "dropped", "claimed"]
    held, released, dropped, claimed = (event.fields for event in found)
    who = held["by"]
    assert re.fullmatch(r"token [0-9a-f]{8} \(ops <b>laptop</b>\)", who)
    assert (held["why"], released["by"], dropped["why"]) == ("the <audit>", who, f"by {who}, in the console")
    assert (claimed["holder"], claimed["generation"], claimed["by"]) == ("host-b", 2, who)
    audit = admin.get("/volumes/pg/audit")
    for word in ("hold", "release", "drop", "promote", "claim"):
        assert f"<b>{word}</b>" in audit
    assert "ops &lt;b&gt;laptop" in audit
    assert "laptop</b>)" not in audit
    logged = [line["message"] for line in process.log() if "console: token" in line["message"]]
    assert any("drop of pg 2" in line for line in logged)


def test_a_session_ends_with_its_token_and_at_logout(process: MirrorProcess) -> None:
    visitor, text = Visitor(process.port), token(process, "read")
    assert visitor.login(text) == 303
    Tokens(str(process.root / "tokens.json")).revoke(text.split("_")[1])
    assert visitor.ask("GET", "/")[0] == 303
    assert visitor.login(token(process, "read")) == 303
    before = visitor.cookie
    assert visitor.ask("POST", "/logout", "", Origin=str(visitor.origin), **{"Content-Type": FORM})[0] == 403
    assert visitor.act("/logout")[0] == 303
    assert "Max-Age=0" in visitor.headers["Set-Cookie"]
    assert (visitor.cookie, visitor.ask("GET", "/")[0]) == (before, 303)


def test_an_event_says_which_volume_changed(process: MirrorProcess, admin: Visitor) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=PATIENCE_S)
    try:
        connection.request("GET", "/console/events", headers={"Cookie": admin.cookie})
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
        assert answer.readline() == b"retry: 3000\n"
        assert admin.act("/volumes/pg/snapshots/1/hold", days="1")[0] == 303
        lines = iter(answer.readline, b"")
        assert next(line for line in lines if line.startswith(b"event")) == b"event: change\n"
        data = json.loads(next(lines).removeprefix(b"data: "))
        assert data["volume"] == "pg"
        assert data["revision"] > 4
        assert admin.act("/logout")[0] == 303
        assert all(not line.startswith(b"event") for line in lines), "it ends with the session"
    finally:
        connection.close()


def test_wrong_tokens_are_tried_at_a_rate(tmp_path: Path) -> None:
    """And with TLS the cookie is for TLS alone."""
    process = MirrorProcess(tmp_path / "root", "--console")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    process = MirrorProcess(
        tmp_path / "root", "--console", "--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")
    )
    context = ssl.create_default_context()
    authority.configure_trust(context)
    process.start()
    try:
        visitor = Visitor(process.port, context)
        assert visitor.post("/login", token=process.admin)[0] == 303
        cookie = visitor.headers["Set-Cookie"]
        assert cookie.startswith("__Host-snapfs-console=")
        assert "Secure" in cookie
        assert "Path=/;" in f"{cookie};"
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        for _ in range(BURST):
            assert visitor.post("/login", token="wrong")[0] == 403
        status, _ = visitor.post("/login", token=process.admin)
        assert (status, int(visitor.headers["Retry-After"]) > 0) == (429, True)
    finally:
        process.stop()
