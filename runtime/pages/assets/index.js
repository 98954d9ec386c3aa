"use strict";
// The page of many registrations: list, filters, order, flicker, ratings.
(() => {
  const one = (selector, root = document) => root.querySelector(selector);
  const data = JSON.parse(one("#data").textContent);
  const KEY = "rpnet-ratings-" + data.identity;
  const CHUNK = 40;
  const SIGNS = { ok: "✓", look: "!", failed: "✕", error: "✕", none: "?" };
  const ROWS = data.entries;
  const list = one("#list"), end = one("#end");
  let shown = [], drawn = 0, selected = -1;

  // Ratings: kept in the browser if it lets us, always in memory.
  let ratings = { ...data.ratings };
  try { ratings = { ...ratings, ...JSON.parse(localStorage.getItem(KEY) || "{}") }; } catch { /* no storage from this file */ }
  function keep() {
    try { localStorage.setItem(KEY, JSON.stringify(ratings)); } catch { /* they can still be saved as a file */ }
    one("#rated").textContent = Object.values(ratings).filter((rating) => rating.decision).length;
  }
  const ratingOf = (entry) => ratings[entry.name] || { decision: "", options: "", note: "" };

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
    made.append(...children);
    return made;
  }

  function card(entry) {
    const verdict = entry.verdict || "none";
    const item = element("li", { class: "card " + verdict, tabindex: "-1" });
    const title = entry.link ? element("a", { href: entry.link }, entry.name) : element("span", {}, entry.name);
    const head = element("div", { class: "head" },
      element("span", { class: "badge " + (verdict === "error" ? "failed" : verdict) }, element("span", { "aria-hidden": "true" }, SIGNS[verdict]), " " + (verdict === "none" ? "no verdict" : verdict)), " ",
      element("h3", {}, title));
    if (entry.warnings) head.append(element("span", { class: "quiet" }, entry.warnings + (entry.warnings === 1 ? " warning" : " warnings")));
    const words = element("div", { class: "words" });
    if (entry.reasons.length) words.append(element("p", { class: "why" }, entry.reasons.join("; ")));
    const marked = Object.entries(entry.z).sort((a, b) => b[1] - a[1]).slice(0, 4);
    if (marked.length) {
      const figures = element("dl", { class: "z" });
      for (const [name, z] of marked) {
        figures.append(element("div", { class: z > data.clear ? "far" : "" }, element("dt", {}, data.figures[name]), element("dd", {}, String(entry.figures[name]), element("span", { class: "quiet" }, "  z " + (z > 0 ? "+" : "−") + Math.abs(z).toFixed(1)))));
      }
      words.append(figures);
    }
    const rating = element("div", { class: "rating", role: "group", "aria-label": "Rating of " + entry.name });
    data.decisions.forEach((decision, n) => {
      const button = element("button", { type: "button", "data-decision": decision, "aria-pressed": "false" }, decision + " ", element("kbd", {}, String(n + 1)));
      button.addEventListener("click", () => rate(entry, ratingOf(entry).decision === decision ? "" : decision));
      rating.append(button);
    });
    const note = element("input", { type: "text", placeholder: "note", "aria-label": "Note on " + entry.name });
    const options = element("input", { type: "text", placeholder: "options, such as --smooth 1.5", "aria-label": "Options for doing " + entry.name + " again", class: "options" });
    note.addEventListener("input", () => write(entry, { note: note.value }));
    options.addEventListener("input", () => write(entry, { options: options.value }));
    rating.append(options, note);
    words.append(rating);
    item.append(head);
    const body = element("div", { class: "body" });
    if (entry.thumbnails.fixed) {
      const [width, height] = entry.thumbnails.size;
      const pictures = element("div", { class: "pair", style: "aspect-ratio:" + width + "/" + height + ";max-width:" + width + "px" },
        element("img", { class: "warped", src: entry.thumbnails.warped, width, height, alt: "Warped scan of " + entry.name + ", three planes" }),
        element("img", { class: "fixed", src: entry.thumbnails.fixed, width, height, alt: "Fixed scan of " + entry.name + ", three planes" }));
      body.append(pictures);
    }
    body.append(words);
    item.append(body);
    item.addEventListener("click", () => select(shown.indexOf(entry), false));
    item.addEventListener("focusin", () => select(shown.indexOf(entry), false));
    entry.item = item;
    paint(entry);
    return item;
  }
  function paint(entry) {
    if (!entry.item) return;
    const rating = ratingOf(entry);
    for (const button of entry.item.querySelectorAll("[data-decision]")) button.setAttribute("aria-pressed", String(button.dataset.decision === rating.decision));
    const options = one(".options", entry.item), note = one(".rating input:last-child", entry.item);
    options.hidden = rating.decision !== "redo";
    if (document.activeElement !== options) options.value = rating.options;
    if (document.activeElement !== note) note.value = rating.note;
  }
  function write(entry, change) {
    ratings[entry.name] = { ...ratingOf(entry), name: entry.name, ...change };
    const { decision, options, note } = ratings[entry.name];
    if (!decision && !options && !note) delete ratings[entry.name];
    keep();
  }
  function rate(entry, decision) { write(entry, { decision }); paint(entry); }

  function select(index, move = true) {
    if (index < 0 || index >= shown.length) return;
    while (drawn <= index) more();
    if (selected >= 0 && shown[selected] && shown[selected].item) shown[selected].item.classList.remove("selected");
    selected = index;
    const entry = shown[index];
    entry.item.classList.add("selected");
    if (move) { entry.item.focus({ preventScroll: true }); entry.item.scrollIntoView({ block: "nearest" }); }
    for (const figure of document.querySelectorAll(".distributions figure")) {
      const value = entry.figures[figure.dataset.figure], mark = one(".mark", figure);
      mark.hidden = value === undefined;
      one(".value", figure).textContent = value === undefined ? "" : String(value);
      if (value !== undefined) mark.style.left = 100 * Math.min(Math.max((value - figure.dataset.low) / (figure.dataset.high - figure.dataset.low), 0), 1) + "%";
    }
  }

  function more() {
    const part = shown.slice(drawn, drawn + CHUNK);
    list.append(...part.map((entry) => { if (entry.item) { paint(entry); return entry.item; } return card(entry); }));
    drawn += part.length;
    return part.length;
  }
  function refresh() {
    const words = one("#search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const verdict = one("#verdict").value, decision = one("#decision").value, order = one("#order").value;
    shown = ROWS.filter((entry) => {
      const text = (entry.name + " " + entry.reasons.join(" ")).toLowerCase();
      const rated = ratingOf(entry).decision;
      return words.every((word) => text.includes(word)) && (!verdict || entry.verdict === verdict) && (!decision || (decision === "none" ? !rated : rated === decision));
    });
    if (order === "name") shown.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
    else if (order !== "worst") shown.sort((a, b) => (b.z[order] ?? -Infinity) - (a.z[order] ?? -Infinity) || (a.figures[order] ?? Infinity) - (b.figures[order] ?? Infinity));
    for (const entry of ROWS) if (entry.item) entry.item.classList.remove("selected");
    list.replaceChildren();
    drawn = 0; selected = -1;
    more();
    one("#shown").textContent = shown.length === ROWS.length ? "" : shown.length + " of " + ROWS.length + " pairs";
  }
  for (const id of ["#search", "#verdict", "#decision", "#order"]) one(id).addEventListener("input", refresh);
  new IntersectionObserver((found) => { if (found.some((entry) => entry.isIntersecting)) more(); }, { rootMargin: "1500px" }).observe(end);
  document.addEventListener("scroll", () => { if (end.getBoundingClientRect().top < innerHeight + 1500) more(); }, { passive: true });

  function flip() {
    const on = list.classList.toggle("flipped");
    one("#flip").setAttribute("aria-pressed", String(on));
  }
  one("#flip").addEventListener("click", flip);

  const clean = (text) => String(text).replace(/[\t\r\n]+/g, " ");
  one("#save").addEventListener("click", () => {
    const lines = [["name", "decision", "options", "note", "verdict"]];
    for (const entry of ROWS) { const rating = ratings[entry.name]; if (rating) lines.push([entry.name, rating.decision, rating.options, rating.note, entry.verdict || ""]); }
    const link = element("a", { href: URL.createObjectURL(new Blob([lines.map((line) => line.map(clean).join("\t")).join("\n") + "\n"], { type: "text/tab-separated-values" })), download: "ratings.tsv" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  one("#load").addEventListener("change", async (event) => {
    const [header, ...lines] = (await event.target.files[0].text()).split(/\r?\n/).filter(Boolean).map((line) => line.split("\t"));
    if (header[0] !== "name" || header[1] !== "decision") { one("#shown").textContent = "That file has no ratings: expected the columns name, decision, options, note."; return; }
    for (const [name, decision = "", options = "", note = ""] of lines) ratings[name] = { name, decision, options, note };
    keep();
    ROWS.forEach(paint);
  });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^(input|select|textarea)$/i.test(event.target.tagName)) { if (event.key === "Escape" || (event.key === "Enter" && event.target.type === "text")) { event.target.blur(); if (selected >= 0) shown[selected].item.focus(); } return; }
    const entry = shown[selected];
    const act = {
      j: () => select(selected + 1), arrowdown: () => select(selected + 1), k: () => select(selected - 1), arrowup: () => select(selected - 1), f: flip,
      n: () => entry && one(".rating input:last-child", entry.item).focus(),
      0: () => entry && rate(entry, ""), 1: () => entry && rate(entry, data.decisions[0]), 2: () => entry && rate(entry, data.decisions[1]), 3: () => entry && rate(entry, data.decisions[2]),
      enter: event.target.matches("a, button, summary") ? null : () => entry && entry.link && location.assign(entry.link),
    }[event.key.toLowerCase()];
    if (act) { event.preventDefault(); act(); }
  });
  keep();
  refresh();
})();
