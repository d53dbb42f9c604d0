// Keeps an open page up to date: an event names a volume that changed, and the page fetches itself and takes over the
// parts (data-part) that differ. Without this script a page says the same, as of when it was loaded.
"use strict";

(() => {
  const LEAST_MS = 1500;
  const main = document.querySelector("main[data-live]");
  const sign = document.getElementById("live");
  if (!main || !sign || !window.EventSource) return;
  const word = document.getElementById("live-text");
  const news = document.getElementById("news");
  const still = document.getElementById("still");
  const wanted = main.dataset.live;
  let timer = 0, fetchedAt = 0, busy = false, again = false;

  function say(state, text) {
    sign.hidden = false;
    sign.dataset.state = state;
    word.textContent = text;
    still.hidden = state === "live";
  }

  // What had the focus, so that it has it again in the new part.
  function focusIn(part) {
    const at = document.activeElement;
    if (!at || !part.contains(at)) return null;
    const all = [...part.querySelectorAll("a[href], button, [tabindex]")];
    return { href: at.getAttribute("href"), place: all.indexOf(at) };
  }

  function refocus(part, was) {
    if (!was) return;
    const all = [...part.querySelectorAll("a[href], button, [tabindex]")];
    const same = was.href && all.find((each) => each.getAttribute("href") === was.href);
    (same || all[was.place] || main).focus({ preventScroll: true });
  }

  function takeOver(page) {
    let changed = false;
    for (const part of document.querySelectorAll("[data-part]")) {
      const made = page.getElementById(part.id);
      if (!made || made.innerHTML === part.innerHTML) continue;
      const was = focusIn(part), scroll = part.querySelector(".scroll"), left = scroll ? scroll.scrollLeft : 0;
      part.replaceChildren(...made.childNodes);
      const now = part.querySelector(".scroll");
      if (now) now.scrollLeft = left;
      refocus(part, was);
      changed = true;
    }
    const time = page.getElementById("as-of"), shown = document.getElementById("as-of");
    if (time && shown) {
      shown.textContent = time.textContent;
      shown.dateTime = time.dateTime;
    }
    return changed;
  }

  async function refresh() {
    if (busy) {
      again = true;
      return;
    }
    busy = true;
    try {
      const answer = await fetch(location.href, { credentials: "same-origin", cache: "no-store" });
      if (answer.redirected || answer.status === 401) return location.reload();
      if (!answer.ok) return say("late", "not up to date");
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (takeOver(page)) {
        const head = document.querySelector("h1");
        news.textContent = `${head ? head.textContent.trim() : "The page"} is up to date again.`;
      }
      say("live", "live");
    } catch {
      say("late", "not up to date");
    } finally {
      busy = false;
      fetchedAt = Date.now();
      if (again) {
        again = false;
        soon();
      }
    }
  }

  function soon() {
    if (timer) return;
    timer = setTimeout(() => {
      timer = 0;
      refresh();
    }, Math.max(fetchedAt + LEAST_MS - Date.now(), 150));
  }

  function ages() {
    const now = Date.now();
    for (const each of document.querySelectorAll("time[data-age]")) {
      const seconds = Math.floor((now - Date.parse(each.dateTime)) / 1000);
      if (!(seconds >= 5)) continue;
      const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].find(([least]) => seconds >= least);
      each.textContent = `${Math.floor(seconds / size)} ${unit} ago`;
    }
  }

  const stream = new EventSource(sign.dataset.events);
  stream.addEventListener("change", (event) => {
    const { volume } = JSON.parse(event.data);
    if (wanted === "*" || wanted === volume) soon();
  });
  let opened = false;
  stream.addEventListener("open", () => {
    say("live", "live");
    if (opened) soon(); // something may have come while there was no stream
    opened = true;
  });
  stream.addEventListener("error", () => say("late", stream.readyState === EventSource.CLOSED ? "not live" : "reconnecting"));
  window.addEventListener("pagehide", () => stream.close());
  setInterval(ages, 5000);
})();
