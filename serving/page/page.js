"use strict";
// The page: a socket that brings fragments and facts, a player for each film, and controls that send messages.

const $ = (id) => document.getElementById(id);
const KEPT = 120;            // s that can be gone back to
const VIEW = 10;             // s on the axis under the picture
const ACK = 4;               // fragments after which the server is told
const OPENING = 0, FRAGMENT = 1, SOUND = 2;
const SLACK = 0.06;          // s beside the target that are left alone
const AUDIO = /\.(wav|mp3|flac|m4a|aac|ogg|opus)$/i;

const live = {
  players: new Map(), model: null, standing: null, chosen: 0, following: true, playing: true,
  extra: 0.05, least: 0.05, stalls: 0, clicks: [], asked: new Map(), number: 0, got: 0, socket: null, wait: 250, bytes: 0,
  muted: false, volume: 0.8, stalled: 0,
};
window.live = live;          // for tests and the curious

// ---------------------------------------------------------------------------------------------------- a film

class Player {
  constructor(facts) {
    Object.assign(this, { film: facts.film, first: facts.first, queue: [], edge: facts.first / live.model.fps });
    this.element = document.createElement("article");
    this.element.className = "film";
    this.element.innerHTML = `<button class="screen" type="button"><video playsinline disablepictureinpicture></video></button>
      <canvas role="img" aria-label="Spectrogram and level; click to go back"></canvas>
      <div class="caption"><span class="name"></span><span class="what"></span><button type="button" class="close">Close</button></div>`;
    [this.video, this.canvas] = ["video", "canvas"].map((name) => this.element.querySelector(name));
    this.element.querySelector(".screen").onclick = () => choose(this.film);
    this.element.querySelector(".screen").setAttribute("aria-label", `Film ${this.film}`);
    this.element.querySelector(".close").onclick = () => ask({ do: "close", film: this.film });
    this.canvas.onclick = (event) => this.goTo(event);
    this.video.onwaiting = () => this.waiting();
    this.video.onplaying = () => this.goesOn();
    this.columns = live.model.columns * live.model.fps * KEPT;
    this.sound = Object.assign(document.createElement("canvas"), { width: this.columns, height: live.model.bins });
    this.brush = this.sound.getContext("2d");
    this.levels = new Uint8Array(this.columns);
    this.open(facts.codecs);
    $("films").append(this.element);
    this.video.requestVideoFrameCallback?.((now, facts) => this.seen(now, facts));
  }

  open(codecs) {
    this.source = new MediaSource();
    this.url = URL.createObjectURL(this.source);
    this.video.src = this.url;
    this.source.addEventListener("sourceopen", () => {
      if (this.buffer || this.gone) return;
      if (!MediaSource.isTypeSupported(codecs)) return say(`This browser does not play ${codecs}.`);
      this.buffer = this.source.addSourceBuffer(codecs);
      this.buffer.timestampOffset = this.first / live.model.fps;
      this.buffer.addEventListener("updateend", () => this.append());
      this.append();
    });
  }

  take(data) { this.queue.push(data); this.append(); }

  append() {
    if (!this.buffer || this.buffer.updating || this.gone) return;
    try {
      const old = this.video.currentTime - KEPT - 5, ranges = this.buffer.buffered;
      if (ranges.length && ranges.start(0) < old - 10) return this.buffer.remove(0, old);
      if (this.queue.length) this.buffer.appendBuffer(this.queue.shift());
      else this.begin();
    } catch (error) {
      if (error.name === "QuotaExceededError") this.buffer.remove(0, Math.max(1, this.video.currentTime - 10));
      else if (!this.gone) reconnect();
    }
  }

  begin() {                 // once there is something to show
    if (this.begun || !this.buffer.buffered.length) return;
    this.begun = true;
    this.video.currentTime = Math.max(this.buffer.buffered.start(0), this.edge - target());
    this.loud();
    if (live.playing) this.play();
  }

  play() {
    this.video.play().catch((error) => {
      if (error.name !== "NotAllowedError" || live.muted) return;
      live.muted = true;    // browsers let nobody be surprised by sound
      showSound();
      say("Muted until you press M or the button.");
      this.play();
    });
  }

  loud() {
    this.video.muted = live.muted || this.film !== live.chosen;
    this.video.volume = live.volume;
  }

  get end() {
    const ranges = this.video.buffered;
    return ranges.length ? ranges.end(ranges.length - 1) : 0;
  }

  follow() {                // keep as far behind the newest frame as is wanted
    const video = this.video, ranges = video.buffered;
    if (!this.begun || !ranges.length || video.seeking) return;
    const now = video.currentTime, last = ranges.length - 1;
    for (let i = 0; i <= last; i++)  // what a slow connection has left out
      if (now >= (i ? ranges.end(i - 1) - 0.15 : 0) && now < ranges.start(i)) { video.currentTime = ranges.start(i) + 0.01; return; }
    if (!live.following || !live.playing) { video.playbackRate = 1; return; }
    const behind = this.edge - now, off = behind - target();
    this.behind = this.behind === undefined ? behind : 0.8 * this.behind + 0.2 * behind;
    if (off > 1.5 && this.end - now > target()) { video.currentTime = Math.min(this.end - 0.1, this.edge - target()); return; }
    const smooth = this.behind - target();
    video.playbackRate = Math.abs(smooth) < SLACK ? 1 : 1 + Math.max(-0.06, Math.min(0.08, 0.3 * smooth));
  }

  waiting() {
    if (!live.playing || !this.begun || this.video.seeking || this.film !== live.chosen) return;
    this.since = performance.now();
    setTimeout(() => this.nudge(), 120);
  }

  nudge() {                 // one that ran dry waits for a second of film and more, one that seeks for what it shows
    if (!this.since || this.gone) return;
    if (this.end - this.video.currentTime > 0.12) this.video.currentTime += 0.001;
    else setTimeout(() => this.nudge(), 30);
  }

  goesOn() {
    if (!this.since) return;
    const lasted = (performance.now() - this.since) / 1000;
    this.since = 0;
    if (lasted < 0.02) return;
    live.stalls += 1;
    live.stalled = Math.max(live.stalled, lasted);
    live.extra = Math.min(1, live.extra + 0.1);
    live.least = Math.min(0.3, live.least + 0.03);
    live.calm = performance.now();
  }

  seen(now, facts) {        // a picture is on the screen
    if (this.gone) return;
    const then = this.video.currentTime + ((facts.expectedDisplayTime - performance.now()) / 1000) * this.video.playbackRate;
    if (this.film === live.chosen && !this.video.paused && !this.video.seeking) offset((then - facts.mediaTime) * 1000);
    for (const [number, click] of live.asked)
      if (click.film === this.film && facts.mediaTime >= click.time - 0.001) {
        live.asked.delete(number);
        live.clicks.push((performance.now() - click.began) / 1000);
        $("m-click").value = live.clicks.at(-1).toFixed(2);
      }
    this.video.requestVideoFrameCallback((time, next) => this.seen(time, next));
  }

  hear(frame, data) {       // columns of a frame: level, then bins from low to high
    const { bins, columns } = live.model, wide = data.length / (bins + 1);
    const x = ((frame + 1) * columns - wide) % this.columns, image = this.brush.createImageData(wide, bins);
    for (let column = 0; column < wide; column++) {
      this.levels[(x + column) % this.columns] = data[column * (bins + 1)];
      for (let bin = 0; bin < bins; bin++)
        image.data.set(shade(data[column * (bins + 1) + 1 + bin]), 4 * ((bins - 1 - bin) * wide + column));
    }
    this.brush.putImageData(image, x, 0);
    if (x + wide > this.columns) this.brush.putImageData(image, x - this.columns, 0);  // the rest begins anew at the left
    this.made(frame);
  }

  made(frame) { this.edge = Math.max(this.edge, (frame + 1) / live.model.fps); }  // the newest frame that is known of

  get right() {             // s at the right end of the axis
    return live.following ? this.edge : Math.min(this.edge, this.video.currentTime + VIEW / 2);
  }

  draw() {
    const canvas = this.canvas, scale = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(canvas.clientWidth * scale), Math.round(canvas.clientHeight * scale)];
    if (!width) return;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const pen = canvas.getContext("2d"), rate = live.model.columns * live.model.fps, left = this.right - VIEW;
    const axis = 17 * scale, level = Math.round((height - axis) * 0.24), tall = height - axis - level;
    pen.fillStyle = "#101214";
    pen.fillRect(0, 0, width, height);
    const from = Math.max(left, this.first / live.model.fps, this.edge - KEPT + 1), begin = Math.floor(from * rate);
    const end = Math.floor(this.right * rate), place = (column) => (column / rate - left) / VIEW * width;
    pen.imageSmoothingEnabled = true;
    for (let at = begin; at < end;) {
      const x = at % this.columns, count = Math.min(end - at, this.columns - x);
      pen.drawImage(this.sound, x, 0, count, live.model.bins, place(at), 0, place(at + count) - place(at), tall);
      at += count;
    }
    pen.fillStyle = "#4fc3cc";
    pen.beginPath();
    pen.moveTo(place(begin), tall + level);
    for (let at = begin; at < end; at += 2) pen.lineTo(place(at), tall + level - (this.levels[at % this.columns] / 255) * (level - 4 * scale));
    pen.lineTo(place(end), tall + level);
    pen.fill();
    this.label(pen, scale, width, height, left, axis);
  }

  label(pen, scale, width, height, left, axis) {
    pen.font = `${11 * scale}px system-ui, sans-serif`;
    pen.fillStyle = "#8d949c";
    pen.textBaseline = "middle";
    const every = width / scale > 320 ? 2 : 5;
    for (let second = Math.ceil(left / every) * every; second <= this.right; second += every) {
      const x = (second - left) / VIEW * width;
      if (second < 0 || x < 16 * scale || x > width - 16 * scale) continue;
      pen.textAlign = "center";
      pen.fillText(clock(second, 0), x, height - axis / 2);
    }
    pen.fillStyle = "#ffffff";
    const here = (this.video.currentTime - left) / VIEW * width;
    pen.fillRect(Math.min(width - 2 * scale, here), 0, 1.5 * scale, height - axis);
  }

  goTo(event) {
    const box = this.canvas.getBoundingClientRect();
    goBack(this.edge - this.right + VIEW * (1 - (event.clientX - box.left) / box.width));
  }

  close() {
    this.gone = true;
    this.video.removeAttribute("src");
    this.video.load();
    URL.revokeObjectURL(this.url);
    this.element.remove();
  }
}

const SHADES = Array.from({ length: 256 }, (_, i) => {   // from night over the accent to white
  const x = i / 255, ramp = (a, b, c) => (x < 0.6 ? a + (b - a) * (x / 0.6) ** 1.3 : b + (c - b) * ((x - 0.6) / 0.4));
  return [ramp(16, 32, 240), ramp(18, 140, 252), ramp(20, 150, 250), 255];
});
const shade = (value) => SHADES[value];
const target = () => Math.max(0.25, live.model.lead - 1 / live.model.fps) + live.extra;
const chosen = () => live.players.get(live.chosen);
const clock = (seconds, digits = 1) => {
  const all = Math.max(0, seconds), minutes = Math.floor(all / 60), rest = (all - 60 * minutes).toFixed(digits);
  return `${minutes}:${rest.padStart(digits ? 3 + digits : 2, "0")}`;
};

const offsets = [];
function offset(ms) {
  offsets.push(ms);
  if (offsets.length > 41) offsets.shift();
  live.offset = [...offsets].sort((a, b) => a - b)[offsets.length >> 1];
}

// ---------------------------------------------------------------------------------------------------- the socket

function connect() {
  const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/watch`);
  live.socket = socket;
  socket.binaryType = "arraybuffer";
  socket.onopen = () => { live.wait = 250; live.got = 0; if (!live.playing) send({ do: "playing", on: false }); };
  socket.onmessage = ({ data }) => (typeof data === "string" ? told(JSON.parse(data)) : came(data));
  socket.onclose = ({ code }) => {
    if (live.socket !== socket) return;
    for (const player of live.players.values()) player.close();
    live.players.clear();
    live.standing = null;
    live.following = true;  // who comes again has nothing to go back to
    if (code === 1008) return status("not let in: open the address that was printed", "late");
    status(live.full || "connection lost, trying again", "late");
    setTimeout(connect, live.full ? 5000 : live.wait);
    live.wait = Math.min(3000, live.wait * 1.6);
  };
}

const reconnect = () => live.socket?.close();

function came(data) {
  const head = new DataView(data), kind = head.getUint8(0), player = live.players.get(head.getUint16(2)), frame = head.getUint32(4);
  const payload = new Uint8Array(data, 8);
  if (kind === FRAGMENT && ++live.got % ACK === 0) live.socket.send(`{"got":${live.got}}`);
  live.bytes += data.byteLength;
  if (!player) return;
  if (kind === SOUND) player.hear(frame, payload);
  else player.take(payload);
  if (kind === FRAGMENT) player.made(frame);  // at the latest when there is something to play
}

function told(event) {
  if (event.type === "model") { live.model = event; live.full = ""; showModel(); }
  else if (event.type === "film") {
    live.players.get(event.film)?.close();
    live.players.set(event.film, new Player(event));
    if (!live.players.has(live.chosen)) choose(event.film);
    showFilms();
  } else if (event.type === "standing") { if (event.films) { live.standing = event; showStanding(); } }
  else if (event.type === "done") {
    const click = live.asked.get(event.id);
    if (click && event.frame !== undefined && click.timed) Object.assign(click, { film: event.film, time: event.frame / live.model.fps });
    else live.asked.delete(event.id);
  } else if (event.type === "refused" || event.type === "failed") { live.asked.delete(event.id); say(sentence(event.text)); }
  else if (event.type === "full") live.full = event.text;
}

const send = (message) => live.socket?.readyState === 1 && live.socket.send(JSON.stringify(message));
const sentence = (text) => text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

function ask(message, timed = false) {
  const id = ++live.number;
  live.asked.set(id, { began: performance.now(), timed });
  send({ ...message, id });
}

// ---------------------------------------------------------------------------------------------------- what is shown

function status(text, on) { $("status-text").textContent = text; document.querySelector(".status").dataset.on = on; }

let noticed;
function say(text) {
  $("notice").textContent = text;
  $("notice").hidden = false;
  clearTimeout(noticed);
  noticed = setTimeout(() => { $("notice").hidden = true; }, 6000);
}

function showModel() {
  const { name, classes, texts, guided, takes } = live.model;
  $("model").textContent = name;
  $("prompting").hidden = !texts;
  $("classes").hidden = !classes.length;
  const widest = Math.max(0, ...classes.map((label) => label.length));
  $("classes").classList.toggle("many", classes.length > 4 || widest * classes.length > 30);
  $("classes").style.setProperty("--widest", `${Math.min(widest, 12)}ch`);  // longer ones go on in a second line
  $("classes").replaceChildren(...classes.map((label, i) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: label });
    button.dataset.label = label;
    if (i < 9) button.title = `${label} (${i + 1})`;
    button.onclick = () => show(label);
    return button;
  }));
  $("guided").hidden = !guided;
  for (const kind of ["sound", "picture"]) $(`mode-${kind}`).disabled = !takes.includes(kind);
}

function showStanding() {
  const { films, steps, guidance } = live.standing, running = new Set(films.map((film) => film.film));
  for (const [number, player] of live.players) if (!running.has(number)) { player.close(); live.players.delete(number); }
  if (!running.has(live.chosen) && films.length) live.chosen = films.find((film) => live.players.has(film.film))?.film ?? films[0].film;
  showFilms();
  fill($("steps"), steps);
  fill($("guidance"), guidance);
  meters();
}

function fill(input, value) {
  if (document.activeElement === input || input.value === String(value)) return;
  input.value = value;
  input.removeAttribute("aria-invalid");
}

const chosenFacts = () => live.standing?.films.find((film) => film.film === live.chosen);

function showFilms() {
  $("films").dataset.count = Math.max(1, live.players.size);
  for (const film of live.standing?.films ?? []) {
    const player = live.players.get(film.film);
    if (!player) continue;
    player.element.setAttribute("aria-current", film.film === live.chosen);
    player.element.querySelector(".name").textContent = `Film ${film.film}`;
    const from = film.parent ? `, left film ${film.parent}` : "";
    player.element.querySelector(".what").textContent = `${film.label ?? "as it comes"}, seed ${film.seed}${from}`;
    player.element.querySelector(".close").hidden = live.players.size < 2;
    player.loud();
  }
  const facts = chosenFacts();
  if (!facts) return;
  for (const button of $("classes").children) button.setAttribute("aria-pressed", button.dataset.label === facts.label);
  fill($("seed"), facts.seed);
  const prompted = JSON.stringify([facts.film, facts.label]);
  if (live.model.texts && live.prompted !== prompted) fill($("prompt"), facts.label ?? "");  // else what is typed stays
  live.prompted = prompted;
  const kind = facts.given?.kind ?? "joint";
  for (const mode of ["joint", "sound", "picture"]) $(`mode-${mode}`).setAttribute("aria-pressed", mode === kind);
  $("given").textContent = facts.given
    ? `The ${kind} of ${facts.given.name} plays, ${clock((facts.given.end - facts.next) / live.model.fps, 0)} to go.`
    : "Picture and sound are made together.";
  $("fork").disabled = live.standing.films.length >= live.model.most;
  showHistory(facts);
}

function showHistory(facts) {
  const key = JSON.stringify(facts.turns);
  if ($("history").dataset.key === key) return;
  $("history").dataset.key = key;
  $("history").replaceChildren(...facts.turns.toReversed().map(({ frame, told }) => {
    const item = document.createElement("li"), at = Object.assign(document.createElement("span"), { className: "at" });
    at.textContent = clock(frame / live.model.fps);
    item.append(at, Object.assign(document.createElement("span"), { textContent: told }));
    return item;
  }));
}

function meters() {
  const { speed, p50, p99, paused, released, resting } = live.standing, player = chosen();
  $("m-speed").value = speed === null ? "–" : speed.toFixed(1);
  $("m-p50").value = p50 === null ? "–" : (1000 * p50).toFixed(0);
  $("m-p99").value = p99 === null ? "–" : (1000 * p99).toFixed(0);
  if (live.offset !== undefined) $("m-offset").value = Math.round(live.offset);  // which has no -0
  $("rest").textContent = paused || released ? "Go on" : "Pause the model";
  if (!player) return status(released ? "the model's memory is free" : "waiting for the first frame", "");
  const made = (player.edge - player.video.currentTime) * live.model.fps + (live.playing ? 1 : 0);
  $("m-ahead").value = made.toFixed(0);
  if (released) status("the model's memory is free", "");
  else if (paused) status("the model is paused", "");
  else if (!live.playing) status(resting ? "paused" : "paused, the film goes on", "");
  else if (!live.following) status(`${clock(player.edge - player.video.currentTime, 0)} behind live`, "");
  else if (speed !== null && speed < 1) status("slower than real time", "late");
  else status("live", "live");
}

function showSound() {
  $("mute").textContent = live.muted ? "Unmute" : "Mute";
  $("mute").setAttribute("aria-pressed", live.muted);
  $("volume").value = live.volume;
  for (const player of live.players.values()) player.loud();
}

// ---------------------------------------------------------------------------------------------------- what is done

function choose(film) {
  live.chosen = film;
  offsets.length = 0;
  showFilms();
}

const show = (label) => ask({ do: "label", film: live.chosen, to: label }, true);
const newSeed = () => ask({ do: "seed", film: live.chosen, to: Math.floor(Math.random() * 2 ** 31) }, true);

function play(on) {
  live.playing = on;
  $("play-text").textContent = on ? "Pause" : "Play";
  send({ do: "playing", on });
  for (const player of live.players.values()) on ? player.play() : player.video.pause();
}

function goLive() {
  live.following = true;
  for (const player of live.players.values())
    if (player.begun) player.video.currentTime = Math.min(player.end - 0.05, Math.max(0, player.edge - target()));
  if (!live.playing) play(true);
}

function goBack(behind) {    // s behind the newest frame, since each film has a clock of its own
  live.following = behind < target() + 0.3;
  if (live.following) return goLive();
  for (const player of live.players.values()) {
    const ranges = player.video.buffered;
    if (ranges.length) player.video.currentTime = Math.max(ranges.start(0), Math.min(player.edge - behind, player.end - 0.1));
  }
}

function step(by) {
  const player = chosen();
  if (player) goBack(player.edge - player.video.currentTime - by);
}

function fork() {
  const at = live.following ? {} : { at: Math.floor(chosen().video.currentTime * live.model.fps) };
  ask({ do: "fork", film: live.chosen, ...at });
}

// What the server has at an address, and undefined where it refuses, which is told.
async function fetched(address) {
  try {
    const answer = await fetch(address), name = /filename="([^"]+)"/.exec(answer.headers.get("content-disposition"))?.[1];
    if (answer.ok) return { name, blob: await answer.blob() };
    const text = await answer.text();
    say(sentence(answer.headers.get("content-type")?.includes("json") ? JSON.parse(text).text : text.trim()));
  } catch { say("The server does not answer; try again."); }
}

async function download(address) {
  say("Making the file…");
  const file = await fetched(address);
  if (!file) return;
  $("notice").hidden = true;
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file.blob), download: file.name ?? "" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

const snapshot = () => download(`films/${live.chosen}/state`);
function record() {
  const { fps } = live.model, now = chosen()?.video.currentTime ?? 0;
  const first = Math.max(0, Math.floor((now - Number($("back").value)) * fps));
  download(`films/${live.chosen}/record?from=${first}${live.following ? "" : `&to=${Math.floor(now * fps) + 1}`}`);
}

async function copy(text, title) {
  try { await navigator.clipboard.writeText(text); say("Copied."); } catch {  // as on plain http from another machine
    $("copy-title").textContent = title;
    Object.assign($("copy-text"), { value: text, rows: Math.min(10, 1 + Math.ceil(text.length / 40)) });
    if (!$("copy").open) $("copy").showModal();
    $("copy-text").select();
  }
}

async function command() {
  const file = await fetched(`films/${live.chosen}/commands`);
  if (!file) return;
  live.command = await file.blob.text();
  await copy(live.command, "The commands that make this film again");
}

const rest = () => ask({ do: live.standing?.paused || live.standing?.released ? "play" : "pause" });

async function upload(file, kind) {
  say(`Reading ${file.name}…`);
  const address = `upload/${kind}?film=${live.chosen}&name=${encodeURIComponent(file.name)}`;
  try {
    const answer = await fetch(address, { method: "POST", body: file }), facts = await answer.json();
    if (!answer.ok) return say(sentence(facts.text));
    $("notice").hidden = true;
    if (kind === "state" || kind === "clip") choose(facts.film);
  } catch { say("The file could not be sent; it may be too large."); }
}

function dropped(file) {
  if (/\.safetensors$/i.test(file.name)) return upload(file, "state");
  if (file.type.startsWith("audio/") || AUDIO.test(file.name)) return upload(file, "sound");
  $("choose-name").textContent = file.name;
  if (!$("choose").open) $("choose").showModal();
  $("choose").onclick = ({ target: { dataset: { kind } } }) => {
    if (kind === undefined) return;
    $("choose").close();
    if (kind) upload(file, kind);
  };
}

function pick(kind, accept) {
  const input = $("file");
  Object.assign(input, { accept, value: "", onchange: () => input.files[0] && upload(input.files[0], kind) });
  input.click();
}

// ---------------------------------------------------------------------------------------------------- controls

function bind() {
  const clicks = {
    play: () => play(!live.playing), live: goLive, mute: () => { live.muted = !live.muted; showSound(); }, fork, snapshot, record,
    export: command, rest, release: () => ask({ do: "release" }), "seed-new": newSeed,
    "seed-copy": () => copy($("seed").value, "The seed"), "copy-close": () => $("copy").close(),
    "mode-joint": () => ask({ do: "joint", film: live.chosen }),
    "mode-sound": () => pick("sound", "audio/*,video/*"), "mode-picture": () => pick("picture", "video/*"),
    open: () => pick("state", ".safetensors"), extend: () => pick("clip", "video/*"),
  };
  for (const [id, act] of Object.entries(clicks)) $(id).addEventListener("click", act);
  const number = (id, message) => $(id).addEventListener("change", () => {
    const { value, labels, min, max, step } = $(id), fits = value !== "" && $(id).checkValidity();
    $(id).setAttribute("aria-invalid", !fits);
    if (fits) ask(message(Number(value)), true);
    else say(`${labels[0].textContent} goes from ${min} to ${max}${step === "any" ? "" : ", whole"}.`);
  });
  number("steps", (to) => ({ do: "steps", to }));
  number("guidance", (to) => ({ do: "guidance", to }));
  number("seed", (to) => ({ do: "seed", film: live.chosen, to }));
  $("volume").addEventListener("input", () => { live.volume = Number($("volume").value); live.muted = false; showSound(); });
  $("steer").addEventListener("submit", (event) => {
    event.preventDefault();  // Enter in a number is about that number
    if ($("prompt").value.trim() && document.activeElement.type !== "number") show($("prompt").value);
  });
  document.addEventListener("keydown", key);
  document.addEventListener("dragover", (event) => { event.preventDefault(); $("drop").hidden = false; });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").hidden = true; });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").hidden = true;
    if (event.dataTransfer.files[0]) dropped(event.dataTransfer.files[0]);
  });
}

function key(event) {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") $("notice").hidden = true;
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
  if (event.key === " " && event.target.matches("button")) return;
  const louder = (by) => { live.volume = Math.max(0, Math.min(1, live.volume + by)); live.muted = false; showSound(); };
  const keys = {
    " ": () => play(!live.playing), l: goLive, m: () => $("mute").click(), f: fork, s: snapshot, r: record, e: command, p: rest, n: newSeed,
    ArrowUp: () => louder(0.05), ArrowDown: () => louder(-0.05), ArrowLeft: () => step(-2), ArrowRight: () => step(2),
  };
  const digit = live.model?.classes[Number(event.key) - 1];
  const act = keys[event.key] ?? keys[event.key.toLowerCase()] ?? (/^[1-9]$/.test(event.key) && digit !== undefined ? () => show(digit) : null);
  if (!act) return;
  event.preventDefault();
  if (!event.repeat || event.key.startsWith("Arrow")) act();  // a key held down asks once
}

let drawn = 0;
function draw(now) {
  requestAnimationFrame(draw);
  if (now - drawn < 60) return;
  drawn = now;
  for (const player of live.players.values()) player.draw();
  const player = chosen();
  if (player) $("time").value = clock(player.video.currentTime);
}

bind();
connect();
requestAnimationFrame(draw);
setInterval(() => {
  for (const player of live.players.values()) player.follow();
  if (performance.now() - (live.calm ?? 0) > 20000) live.extra = Math.max(live.least, live.extra - 0.002);
  const player = chosen();
  if (player && !live.playing && live.standing && !live.standing.resting && player.edge - player.video.currentTime > target() + 1.5) live.following = false;
  $("live").dataset.behind = !live.following;
}, 200);
