// The Edit tab. Runs once, inside Gradio: `element` is the tab's markup, `server` calls the functions of edit.py, `upload`
// sends a file, `trigger` tells Gradio's side of the page. An edit is a flat table, key -> value, of what is not 0.
const $ = (selector) => element.querySelector(selector);
const all = (selector) => [...element.querySelectorAll(selector)];
const root = $(".hw-edit"), figure = $(".hw-figure"), picture = $(".hw-picture"), message = $(".hw-message");
const rows = new Map(all(".hw-row").map((row) => [row.dataset.key, row]));

let edit = {}, replaced = [], side = "both"; // what the sliders say
let past = [], future = []; // edits before and after, as JSON
let original = "", shown = "", name = "portrait"; // data URLs, and the portrait's file name without its ending
let opened = null; // the uploaded file, for another model
let generation = 0; // answers to questions about an earlier portrait are thrown away

// ---- edits ----

const keysOf = (key) => {
  if (!key.endsWith("*")) return [key];
  const stem = key.slice(0, -1);
  return side === "both" ? [`${stem}Left`, `${stem}Right`] : [`${stem}${side}`];
};
const snapshot = () => JSON.stringify([edit, replaced]);

function asFile() { // as app/edits.py writes it
  const file = { replace: replaced };
  for (const [key, value] of Object.entries(edit)) {
    const [group, part] = key.split(/\.(.*)/s);
    if (group === "gaze") { file.gaze ??= [0, 0]; file.gaze[part === "right" ? 0 : 1] = value; }
    else if (part) (file[group] ??= {})[part] = value;
    else file[group] = value;
  }
  return file;
}

function fromFile(file) {
  edit = {};
  const put = (key, value) => { if (value) edit[key] = value; };
  for (const key of ["yaw", "pitch", "roll", "jaw"]) put(key, file[key]);
  if (file.gaze) { put("gaze.right", file.gaze[0]); put("gaze.down", file.gaze[1]); }
  for (const group of ["expression", "shape"])
    for (const [part, value] of Object.entries(file[group] ?? {})) put(`${group}.${part}`, value);
  replaced = [...(file.replace ?? [])];
}

function showSliders() {
  for (const [key, row] of rows) {
    const values = keysOf(key).map((k) => edit[k] ?? 0);
    const value = values.reduce((a, b) => a + b, 0) / values.length;
    const [range, number] = row.querySelectorAll("input");
    range.value = number.value = Math.round(value * 100) / 100;
    // A file may hold more than the slider reaches; the number shows it, the slider stays at its end.
    row.classList.toggle("hw-set", values.some((v) => v !== 0));
    const low = +range.min, span = range.max - low, at = (v) => `${Math.min(100, Math.max(0, (100 * (v - low)) / span))}%`;
    row.style.setProperty("--from", at(Math.min(0, value)));
    row.style.setProperty("--to", at(Math.max(0, value)));
  }
  for (const box of all("[data-replace]")) box.checked = replaced.includes(box.dataset.replace);
  $('[data-do="undo"]').disabled = past.length === 0;
  $('[data-do="redo"]').disabled = future.length === 0;
  $('[data-do="reset"]').disabled = snapshot() === "[{},[]]";
  figure.dataset.edit = JSON.stringify(asFile());
  figure.dataset.asked = snapshot();
}

let before = snapshot(); // the edit when the hand came down
function commit() { // the hand is off: one step of history
  if (snapshot() === before) return;
  past.push(before);
  if (past.length > 200) past.shift();
  future = [];
  before = snapshot();
  showSliders();
  tellSettled();
}

function go(from, to) {
  if (!from.length) return;
  to.push(snapshot());
  [edit, replaced] = JSON.parse(from.pop());
  before = snapshot();
  showSliders();
  ask();
  tellSettled();
}

function become(file) {
  fromFile(file);
  ask();
  commit();
  showSliders();
}

// ---- pictures: one question at a time, and only the newest waits ----

let waiting = null, asking = false;
function ask(since = performance.now()) {
  if (root.dataset.state !== "ready") return;
  waiting = { since };
  figure.dataset.shown = "";
  if (!asking) pump();
}

async function pump() {
  asking = true;
  while (waiting) {
    const { since } = waiting, mine = generation, sent = snapshot();
    waiting = null;
    const made = await call("render", { edit: asFile(), view: $('[data-choose="view"]').value });
    if (mine !== generation) continue;
    if (made.error) { tell(made.error); continue; }
    tell("");
    shown = made.picture;
    picture.src = shown;
    await picture.decode().catch(() => {});
    const took = performance.now() - since;
    figure.dataset.shown = sent;
    figure.dataset.milliseconds = took.toFixed(1);
    figure.dataset.server = made.milliseconds;
    figure.dataset.renders = +figure.dataset.renders + 1;
    $(".hw-time").textContent = `${took.toFixed(0)} ms`;
  }
  asking = false;
}

async function call(what, data) {
  try {
    return await server[what]({ ...data, key: await window.headwarp.key });
  } catch {
    return { error: "The server does not answer; is headwarp app still running?" };
  }
}

function tell(text) {
  message.textContent = text;
  message.hidden = !text;
}

let settling;
function tellSettled() { // the 3D view follows when the hand rests
  clearTimeout(settling);
  settling = setTimeout(() => trigger("settled", { edit: asFile() }), 300);
}

// ---- portraits ----

async function open(file) {
  if (!file || root.dataset.state === "busy") return;
  tell("");
  if (!/^image\//.test(file.type) && file.type) 
    return tell(`${file.name} is not a picture; choose a PNG, JPEG or WebP file.`);
  if (file.size > MAX_PICTURE)
    return tell(`${file.name} has ${Math.round(file.size / 2 ** 20)} MB; choose a picture below ${MAX_PICTURE >> 20} MB.`);
  const was = root.dataset.state;
  root.dataset.state = "busy";
  let path;
  try {
    path = (await upload(file)).path;
  } catch {
    root.dataset.state = was;
    return tell("The picture could not be uploaded; it may be too large, or the server has ended.");
  }
  await enter(path, was, true);
}

async function enter(path, was, fresh) {
  root.dataset.state = "busy";
  const face = fresh ? 0 : +$('[data-choose="face"]').value;
  const made = await call("open_portrait", { path, face, model: $('[data-choose="model"]').value });
  if (made.error) {
    root.dataset.state = was;
    tell(made.error);
    return false;
  }
  generation++;
  [opened, original, shown, name] = [path, made.picture, made.picture, made.name.replace(/\.[^.]*$/, "")];
  if (fresh) {
    [edit, replaced, past, future] = [{}, [], [], []];
    before = snapshot();
  }
  picture.src = original;
  picture.hidden = false;
  picture.style.aspectRatio = `${made.width} / ${made.height}`;
  root.dataset.state = "ready";
  figure.dataset.portrait = made.name;
  tell("");
  $(".hw-faces").hidden = made.faces < 2; // 0 is the largest
  $('[data-choose="face"]').replaceChildren(...Array.from({ length: made.faces }, (_, i) => new Option(i + 1, i, i === made.face, i === made.face)));
  showSliders();
  figure.dataset.shown = snapshot();
  trigger("opened", { name: made.name });
  if (!fresh || $('[data-choose="view"]').value !== "picture") ask();
  tellSettled();
  return true;
}

$(".hw-file").addEventListener("change", (event) => { open(event.target.files[0]); event.target.value = ""; });
$(".hw-drop").addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") { event.preventDefault(); $(".hw-file").click(); }
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"])
  figure.addEventListener(kind, (event) => {
    event.preventDefault();
    figure.classList.toggle("hw-over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") open(event.dataTransfer.files[0]);
  });
document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((f) => f.type.startsWith("image/"));
  if (file && element.offsetParent) open(file);
});

// ---- sliders ----

for (const [key, row] of rows)
  for (const input of row.querySelectorAll("input")) {
    input.addEventListener("input", () => {
      if (input.value === "" || !Number.isFinite(+input.value)) return;
      const value = Math.min(+input.max, Math.max(+input.min, +input.value));
      for (const k of keysOf(key)) if (value) edit[k] = value; else delete edit[k];
      const typed = input.type === "number" ? input.value : null;
      showSliders();
      if (typed !== null) input.value = typed; // not while somebody writes in it
      ask();
    });
    input.addEventListener("change", () => { commit(); showSliders(); });
  }
for (const label of all(".hw-name"))
  label.addEventListener("dblclick", () => {
    for (const k of keysOf(label.parentElement.dataset.key)) delete edit[k];
    ask();
    commit();
  });
for (const box of all("[data-replace]"))
  box.addEventListener("change", () => {
    replaced = all("[data-replace]").filter((b) => b.checked).map((b) => b.dataset.replace);
    ask();
    commit();
  });
for (const button of all("[data-preset]"))
  button.addEventListener("click", () => become(PRESETS[button.dataset.preset]));

function choose(buttons, chosen, attribute) { // arrow keys walk, as in every tab list and radio group
  for (const button of buttons) {
    button.setAttribute(attribute, button === chosen);
    button.tabIndex = button === chosen ? 0 : -1;
  }
}
function walks(buttons, select) {
  for (const [i, button] of buttons.entries()) {
    button.addEventListener("click", () => select(button));
    button.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const next = buttons[(i + step + buttons.length) % buttons.length];
      next.focus();
      select(next);
    });
  }
}
const tabs = all("[data-tab]"), sides = all("[data-side]");
walks(tabs, (tab) => {
  choose(tabs, tab, "aria-selected");
  for (const panel of all("[data-panel]")) panel.hidden = panel.dataset.panel !== tab.dataset.tab;
  root.dataset.kind = tab.dataset.tab;
});
walks(sides, (button) => {
  choose(sides, button, "aria-checked");
  side = button.dataset.side;
  showSliders();
});

// ---- buttons ----

const save = (blob, file) => {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: file });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
};
const actions = {
  undo: () => go(past, future),
  redo: () => go(future, past),
  reset: () => become({}),
  choose: () => $(".hw-file").click(),
  load: () => $(".hw-json").click(),
  async save() {
    const made = await call("save_edit", { edit: asFile() });
    if (made.error) tell(made.error);
    else save(new Blob([made.text], { type: "application/json" }), `${name}-edit.json`);
  },
  async download(button) {
    button.disabled = true;
    const label = button.textContent;
    button.textContent = "Rendering";
    const made = await call("save_picture", { edit: asFile(), provenance: $(".hw-provenance").checked });
    button.disabled = false;
    button.textContent = label;
    if (made.error) return tell(made.error);
    tell(made.notes.join(" "));
    save(new Blob([Uint8Array.from(atob(made.file), (c) => c.charCodeAt(0))], { type: "image/png" }), `${name}-edit.png`);
  },
};
for (const button of all("[data-do]")) button.addEventListener("click", () => actions[button.dataset.do]?.(button));

const compare = $('[data-do="compare"]');
const hold = (on) => {
  if (root.dataset.state !== "ready") return;
  compare.setAttribute("aria-pressed", on);
  picture.src = on ? original : shown;
};
compare.addEventListener("pointerdown", () => hold(true));
for (const kind of ["pointerup", "pointerleave", "pointercancel", "blur"]) compare.addEventListener(kind, () => hold(false));
compare.addEventListener("keydown", (event) => { if (event.key === " " || event.key === "Enter") hold(true); });
compare.addEventListener("keyup", () => hold(false));

$('[data-choose="view"]').addEventListener("change", () => ask());
let model = "geometric";
$('[data-choose="model"]').addEventListener("change", async (event) => {
  if (opened && !(await enter(opened, "ready", false))) event.target.value = model;
  model = event.target.value;
});
$('[data-choose="face"]').addEventListener("change", () => enter(opened, "ready", false));
$(".hw-json").addEventListener("change", async (event) => {
  const file = event.target.files[0];
  event.target.value = "";
  if (!file) return;
  if (file.size > 2 ** 20) return tell(`${file.name} is no edit: it is larger than 1 MB.`);
  const made = await call("read_edit", { name: file.name, text: await file.text() });
  if (made.error) return tell(made.error);
  tell("");
  become(made.edit);
});
document.addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z" || !element.offsetParent) return;
  if (event.target.matches?.('textarea, input:not([type="range"]):not([type="checkbox"])') && !rows.has(event.target.closest?.(".hw-row")?.dataset.key)) return;
  event.preventDefault();
  actions[event.shiftKey ? "redo" : "undo"]();
});
root.dataset.kind = "pose";
showSliders();
root.dataset.alive = "true";
