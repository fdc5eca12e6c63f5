import * as api from "./api";
import { Curve } from "./curve";
import { Timeline, Tool } from "./timeline";

const NUDGE = 2; // frames of 10 ms
const element = <T extends HTMLElement>(id: string): T => document.getElementById(id) as T;
const video = element<HTMLVideoElement>("video");
const timeline = new Timeline(element<HTMLCanvasElement>("timeline"));
const sound = new Audio();

interface Kept { take: api.Take; wav: Blob; url: string; wish: api.Wish }
let uploaded: api.Video | undefined;
let name = "VIDEO";
let takes: Kept[] = [];
let current: Kept | undefined;
let working: AbortController | undefined;

// ---- what the page says

function say(text: string): void { element("status").textContent = text; }

function problem(error: unknown): void {
  if ((error as Error)?.name === "AbortError") return say("Stopped.");
  element("problem").hidden = false;
  element("problem").querySelector("p")!.textContent = (error as Error).message ?? String(error);
  say("");
}
element("problem").querySelector("button")!.onclick = () => { element("problem").hidden = true; };

/** Do something long: progress, the time left, a way to stop it. */
async function work(what: string, lines: (signal: AbortSignal) => AsyncGenerator<api.Line>): Promise<api.Line | undefined> {
  working?.abort();
  const mine = (working = new AbortController());
  const bar = element<HTMLProgressElement>("progress");
  element("cancel").hidden = bar.hidden = element("problem").hidden = false;
  element("problem").hidden = true;
  element<HTMLButtonElement>("generate").disabled = true;
  bar.removeAttribute("value");
  say(`${what} …`);
  let last: api.Line | undefined;
  try {
    for await (const line of lines(mine.signal)) {
      last = line;
      if (line.event === "waiting") say(line.position ? `${what}: ${line.position} in front of you` : `${what} …`);
      if (line.event === "progress") {
        const left = line.total && line.done ? (line.seconds / line.done) * (line.total - line.done) : undefined;
        if (line.total) { bar.max = line.total; bar.value = line.done; } else bar.removeAttribute("value");
        const count = line.total ? ` ${line.done} of ${line.total}` : "";
        say(`${what}: ${line.stage}${count}${left && left > 1 ? `, about ${Math.ceil(left)} s left` : ""}`);
      }
    }
    say("");
    return last;
  } catch (error) {
    problem(error);
    return undefined;
  } finally {
    if (working === mine) {
      element("cancel").hidden = bar.hidden = true;
      element<HTMLButtonElement>("generate").disabled = false;
      working = undefined;
    }
  }
}
element("cancel").onclick = () => working?.abort();

// ---- a video

async function open(file: File): Promise<void> {
  try {
    say("Sending the video …");
    element("problem").hidden = true;
    uploaded = await api.addVideo(file);
  } catch (error) {
    return problem(error);
  }
  name = file.name;
  element("start").hidden = true;
  element("work").hidden = false;
  forgetTakes();
  const address = URL.createObjectURL(file);
  video.src = address;
  timeline.show(new Curve(new Float32Array(Math.ceil(uploaded.duration_s * api.FRAMES_A_SECOND))));
  void timeline.thumbnails(address, uploaded.duration_s).catch(() => say("This browser cannot show the video; its sound can be made all the same."));
  const asked = uploaded.video;
  const found = await work("Looking at the video", (signal) => api.predict(asked, signal));
  if (found?.event === "envelope" && uploaded.video === asked) {
    timeline.show(new Curve(found.envelope));
    changed();
    element("text").focus();
  }
}

element<HTMLInputElement>("file").onchange = (event) => {
  const file = (event.target as HTMLInputElement).files?.[0];
  if (file) void open(file);
};
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const file = event.dataTransfer?.files[0];
  if (file) void (file.type.startsWith("audio/") && timeline.curve ? follow(file) : open(file));
});

// ---- the curve

function changed(): void {
  const { curve } = timeline;
  element<HTMLButtonElement>("undo").disabled = !curve?.canUndo;
  element<HTMLButtonElement>("redo").disabled = !curve?.canRedo;
  const region = timeline.region;
  element("timeline").setAttribute("aria-label", !curve ? "No curve" :
    `Loudness curve of ${timeline.seconds.toFixed(2)} seconds` +
    (region ? `, region from ${(region.from / api.FRAMES_A_SECOND).toFixed(2)} to ${(region.to / api.FRAMES_A_SECOND).toFixed(2)} seconds` : ""));
  timeline.draw();
}
timeline.onChange = changed;

function edit(action: (curve: Curve) => void): () => void {
  return () => { if (timeline.curve) { action(timeline.curve); changed(); } };
}
const actions: Record<string, () => void> = {
  undo: edit((curve) => curve.undo()),
  redo: edit((curve) => curve.redo()),
  louder: edit((curve) => curve.scale(timeline.chosen, 1.25)),
  softer: edit((curve) => curve.scale(timeline.chosen, 0.8)),
  earlier: edit((curve) => curve.shift(timeline.chosen, -NUDGE)),
  later: edit((curve) => curve.shift(timeline.chosen, NUDGE)),
  smooth: edit((curve) => curve.smooth(timeline.chosen)),
  gate: edit((curve) => curve.gate(timeline.chosen)),
  mute: edit((curve) => curve.mute(timeline.chosen)),
  reset: edit((curve) => curve.reset(timeline.chosen)),
  draw: () => tool("draw"),
  select: () => tool("select"),
  "zoom-in": () => timeline.zoom(0.6),
  "zoom-out": () => timeline.zoom(1.6),
};
for (const [id, action] of Object.entries(actions)) element(id).onclick = action;

function tool(chosen: Tool): void {
  timeline.tool = chosen;
  element("draw").setAttribute("aria-pressed", String(chosen === "draw"));
  element("select").setAttribute("aria-pressed", String(chosen === "select"));
}

element<HTMLSelectElement>("shape").onchange = (event) => {
  const menu = event.target as HTMLSelectElement;
  const kind = menu.value as "A" | "V" | "rising" | "falling";
  edit((curve) => curve.shape(timeline.chosen, kind, Math.max(0.1, ...curve.values)))();
  menu.value = "";
};

/** Take the loudness of a sound as the curve. */
async function follow(file: Blob): Promise<void> {
  try {
    say("Listening to the sound …");
    const found = await api.addRecording(file);
    edit((curve) => curve.replace(found.envelope))();
    say("");
  } catch (error) {
    problem(error);
  }
}
element<HTMLInputElement>("sound").onchange = (event) => {
  const file = (event.target as HTMLInputElement).files?.[0];
  if (file) void follow(file);
};

let recorder: MediaRecorder | undefined;
element("record").onclick = async () => {
  if (recorder) return recorder.stop();
  try {
    const microphone = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: false, autoGainControl: false, noiseSuppression: false } });
    const pieces: Blob[] = [];
    recorder = new MediaRecorder(microphone);
    recorder.ondataavailable = (event) => pieces.push(event.data);
    recorder.onstop = () => {
      microphone.getTracks().forEach((track) => track.stop());
      pause();
      const recorded = new Blob(pieces, { type: recorder?.mimeType ?? "audio/webm" });
      recorder = undefined;
      element("record").setAttribute("aria-pressed", "false");
      element("record").textContent = "Record one";
      void follow(recorded);
    };
    element("record").setAttribute("aria-pressed", "true");
    element("record").textContent = "Stop recording";
    seek(0);
    recorder.start();
    void video.play();
  } catch {
    problem(new Error("The microphone cannot be used. Allow it in the browser, or choose a sound file instead."));
  }
};

element("save").onclick = () => {
  const { curve } = timeline;
  if (curve) download(curveFile(curve.values), "curve.json");
};
element<HTMLInputElement>("load").onchange = async (event) => {
  const file = (event.target as HTMLInputElement).files?.[0];
  if (!file) return;
  try {
    const { rms } = JSON.parse(await file.text());
    if (!Array.isArray(rms) || !rms.every((value) => typeof value === "number")) throw new Error();
    edit((curve) => curve.replace(rms))();
  } catch {
    problem(new Error(`${file.name} is no curve that was saved here.`));
  }
};

// ---- a sound to be like

let liked: { recording: string; name: string } | undefined;
function like(chosen: typeof liked): void {
  liked = chosen;
  element("liked").hidden = !chosen;
  element("liked").querySelector("span")!.textContent = chosen ? `like ${chosen.name}` : "";
  element<HTMLInputElement>("text").disabled = Boolean(chosen);
}
element("liked").querySelector("button")!.onclick = () => like(undefined);
element<HTMLInputElement>("like").onchange = async (event) => {
  const file = (event.target as HTMLInputElement).files?.[0];
  if (!file) return;
  try {
    say("Sending the sound …");
    like({ recording: (await api.addRecording(file)).recording, name: file.name });
    say("");
  } catch (error) {
    problem(error);
  }
};

// ---- takes

element<HTMLFormElement>("prompt").onsubmit = async (event) => {
  event.preventDefault();
  const { curve } = timeline;
  if (!uploaded || !curve) return;
  const value = (id: string): string => element<HTMLInputElement>(id).value;
  const wish: api.Wish = {
    envelope: [...curve.values], sample_count: uploaded.sample_count, video: uploaded.video,
    text: value("text"), negative_text: value("negative"), seed: Number(value("seed")), steps: Number(value("steps")),
    guidance: Number(value("guidance")), profile: value("profile"), variations: Number(value("variations")),
    ...(liked ? { text: "", audio: liked.recording } : {}),
  };
  const made = await work("Making sound", (signal) => api.makeTakes(wish, signal));
  if (made?.event !== "takes") return;
  const fresh: Kept[] = [];
  for (const take of made.takes) {
    try {
      const wav = await api.wav(take.take);
      fresh.push({ take, wish, wav, url: URL.createObjectURL(wav) });
    } catch (error) {
      problem(error);
    }
  }
  takes = [...fresh, ...takes];
  if (fresh[0]) listen(fresh[0]);
  seek(0);
  void play();
};

function forgetTakes(): void {
  takes.forEach((kept) => URL.revokeObjectURL(kept.url));
  takes = [];
  current = undefined;
  listTakes();
}

/** Hear this take from where we are: A/B without a gap. */
function listen(kept: Kept): void {
  const playing = !video.paused;
  current = kept;
  sound.src = kept.url;
  sound.currentTime = video.currentTime;
  timeline.produced = kept.take.produced;
  if (playing) void sound.play();
  listTakes();
  timeline.draw();
}

function listTakes(): void {
  element("no-takes").hidden = takes.length > 0;
  element("list").replaceChildren(...takes.map((kept, i) => {
    const { recipe } = kept.take;
    const item = document.createElement("li");
    item.setAttribute("aria-current", String(kept === current));
    const what = document.createElement("span");
    what.className = "what";
    what.textContent = `${i + 1}. ${kept.wish.text || (kept.wish.audio ? "like a sound" : "anything")} `;
    const about = document.createElement("small");
    about.textContent = `seed ${recipe["seed"]}, ${recipe["steps"]} steps, ${recipe["sampler"]}`;
    what.append(about);
    item.append(what, button("Listen", () => { listen(kept); void play(); }), button("WAV", () => download(kept.wav, `take-${i + 1}.wav`)), button("Video", () => void saveVideo(kept, i)),
      button("Recipe", () => download(new Blob([JSON.stringify({ ...recipe, envelope: kept.wish.envelope }, null, 2)], { type: "application/json" }), `take-${i + 1}.json`)),
      button("Command", () => void command(kept, i)), button("Its curve", edit((curve) => curve.replace(kept.wish.envelope))));
    return item;
  }));
}

async function saveVideo(kept: Kept, i: number): Promise<void> {
  try {
    say("Putting the sound into the video …");
    download(await api.muxed(kept.take.take, element<HTMLSelectElement>("source-audio").value), `take-${i + 1}.mp4`);
    say("");
  } catch (error) {
    problem(error);
  }
}

/** The command line that makes the same take; its curve is saved with it. */
async function command(kept: Kept, i: number): Promise<void> {
  const { wish } = kept, curve = `take-${i + 1}-curve.json`;
  const quoted = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;
  const words = ["foley", "generate", quoted(name), "--envelope", curve, "--seed", String(kept.take.recipe["seed"]), "--steps", String(wish.steps),
    "--guidance", String(wish.guidance), "--profile", wish.profile,
    ...(wish.audio ? ["--audio", "SOUND"] : ["--text", quoted(wish.text)]), ...(wish.negative_text ? ["--negative-text", quoted(wish.negative_text)] : []),
    "-o", `take-${i + 1}.mp4`];
  download(curveFile(wish.envelope), curve);
  const line = words.join(" ");
  await navigator.clipboard?.writeText(line).catch(() => undefined);
  say(line);
}

function curveFile(values: ArrayLike<number>): Blob {
  return new Blob([JSON.stringify({ rate_hz: api.FRAMES_A_SECOND, rms: Array.from(values) })], { type: "application/json" });
}

function button(text: string, action: () => void): HTMLButtonElement {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.onclick = action;
  return made;
}

function download(content: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// ---- playing: the sound leads, the picture follows

async function play(): Promise<void> {
  sound.currentTime = video.currentTime;
  await Promise.all([video.play(), ...(current ? [sound.play()] : [])]).catch(() => undefined);
}
function pause(): void { video.pause(); sound.pause(); }
function seek(seconds: number): void {
  video.currentTime = sound.currentTime = Math.min(Math.max(0, seconds), timeline.seconds);
  timeline.at(video.currentTime);
}
timeline.onSeek = seek;
element("play").onclick = () => (video.paused ? void play() : pause());
video.onplay = video.onpause = () => { element("play").textContent = video.paused ? "Play" : "Pause"; };
video.onended = pause;

function follow_clock(): void {
  const region = timeline.region;
  if (!video.paused) {
    if (current && Math.abs(sound.currentTime - video.currentTime) > 0.04) video.currentTime = sound.currentTime;
    if (region && element<HTMLInputElement>("loop").checked && video.currentTime * api.FRAMES_A_SECOND >= region.to) seek(region.from / api.FRAMES_A_SECOND);
    timeline.at(video.currentTime);
  }
  element("clock").textContent = `${video.currentTime.toFixed(2)} s`;
  requestAnimationFrame(follow_clock);
}
requestAnimationFrame(follow_clock);

// ---- keys

document.addEventListener("keydown", (event) => {
  const target = event.target as HTMLElement;
  if (target.matches("input:not([type=checkbox]), select, textarea")) return;
  const command = event.ctrlKey || event.metaKey;
  const keys: Record<string, () => void> = {
    " ": () => (video.paused ? void play() : pause()), d: actions["draw"]!, s: actions["select"]!, "+": actions["louder"]!, "-": actions["softer"]!,
    Delete: actions["mute"]!, Escape: () => { timeline.region = undefined; working?.abort(); changed(); },
    ArrowLeft: event.altKey ? actions["earlier"]! : () => seek(video.currentTime - 0.1),
    ArrowRight: event.altKey ? actions["later"]! : () => seek(video.currentTime + 0.1),
  };
  let action = command ? ({ z: event.shiftKey ? actions["redo"] : actions["undo"], y: actions["redo"] } as Record<string, () => void>)[event.key.toLowerCase()] : keys[event.key];
  if (!command && /^[1-9]$/.test(event.key) && takes[Number(event.key) - 1]) action = () => listen(takes[Number(event.key) - 1]!);
  if (!action || (event.key === " " && target.matches("button"))) return;
  event.preventDefault();
  action();
});

// ---- begin

function begin(): void {
  api.about().then((found) => {
    element("token").hidden = true;
    element("start").hidden = Boolean(uploaded);
    element<HTMLInputElement>("steps").value = String(found.steps);
    element<HTMLInputElement>("guidance").value = String(found.guidance);
    element("profile").replaceChildren(...found.profiles.map((one) => new Option(one, one, one === "balanced", one === "balanced")));
  }).catch((error) => {
    const closed = error instanceof api.Refused && error.reason === "UNAUTHENTICATED";
    element("token").hidden = !closed;
    element("start").hidden = closed;
    if (!closed || element("token").querySelector("input")!.value) problem(error);
  });
}
element<HTMLFormElement>("token").onsubmit = (event) => {
  event.preventDefault();
  element("problem").hidden = true;
  api.useToken(element("token").querySelector("input")!.value.trim());
  begin();
};
begin();
