/** Main module of the studio: opens videos, edits curves, generates takes. */

import * as api from "./api";
import { Curve, loudest } from "./curve";
import { curveFile, readCurve } from "./curve_file";
import { Hand } from "./hand";
import { Keys, listen } from "./keys";
import { Microphone } from "./microphone";
import { button, download, element, field, noProblem, problem, say } from "./page";
import { Screen } from "./screen";
import { Player } from "./player";
import { Kept, Takes } from "./takes";
import { Timeline, Tool } from "./timeline";
import { stop, work } from "./work";

const NUDGE = 2; // frames of 10 ms, by which "earlier" and "later" shift
const STEP_S = 0.1, PICTURE_S = 1 / 30; // seek steps of the keys, seconds
type Shape = "A" | "V" | "rising" | "falling";

const video = element<HTMLVideoElement>("video");
const timeline = new Timeline(element<HTMLCanvasElement>("timeline"));
const hand = new Hand(timeline);
const screen = new Screen(video);
const player = new Player(video);
const takes = new Takes(element("list"), element("no-takes"));
const microphone = new Microphone();
let uploaded: api.Sent<api.Video> | undefined;
let liked: api.Sent<api.Recording> | undefined;
let saved = true; // whether the page can be left without losing work

// ---- opening a video

async function open(file: File): Promise<void> {
  if (!saved && !confirm(`Open ${file.name}? What you made for ${uploaded?.name} goes; save what you want to keep first.`)) return;
  stop(); // work for the previous video
  const sent = new api.Sent<api.Video>(file, file.name, api.addVideo);
  const known = await work("Sending the video", (signal, onProgress) => sent.arrive(signal, onProgress));
  if (!known) return;
  uploaded = sent;
  saved = true;
  element("start").hidden = true;
  element("work").hidden = false;
  element("opened").textContent = file.name;
  player.pause();
  player.length = known.duration_s;
  takes.clear();
  timeline.pictures = [];
  timeline.show(new Curve(new Float32Array(Math.ceil(known.duration_s * api.FRAMES_A_SECOND))));
  player.seek(0);
  void see(sent);
  element("edit").inert = true; // the prediction would overwrite edits
  const envelope = await work("Looking at the video", (stopped, onProgress) => sent.use(stopped, (found) => api.predict(found.video, onProgress, stopped)));
  if (uploaded !== sent) return;
  element("edit").inert = false;
  if (!envelope) return;
  timeline.show(new Curve(envelope));
  changed();
  element("text").focus();
}

async function see(sent: api.Sent<api.Video>): Promise<void> {
  for await (const picture of screen.show(sent, player.length)) {
    timeline.pictures.push(picture);
    timeline.draw();
  }
}

function chosen(id: string, action: (file: File) => void): void {
  field(id).onchange = () => {
    const file = field(id).files?.[0];
    if (file) action(file);
    field(id).value = ""; // so that choosing the same file again fires a change event
  };
}
chosen("file", (file) => void open(file));
chosen("other", (file) => void open(file));
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
  const { curve, region } = timeline;
  timeline.changed();
  element<HTMLButtonElement>("undo").disabled = !curve?.canUndo;
  element<HTMLButtonElement>("redo").disabled = !curve?.canRedo;
  saved &&= !curve?.canUndo;
  showRegion();
  const seconds = (frame: number): string => (frame / api.FRAMES_A_SECOND).toFixed(2);
  timeline.canvas.setAttribute("aria-label", `Loudness curve of ${timeline.seconds.toFixed(2)} seconds` +
    (region ? `, region from ${seconds(region.from)} to ${seconds(region.to)} seconds` : ""));
}
hand.onChange = changed;

function showRegion(): void {
  const { region } = timeline;
  field("region-from").value = region ? (region.from / api.FRAMES_A_SECOND).toFixed(2) : "";
  field("region-to").value = region ? (region.to / api.FRAMES_A_SECOND).toFixed(2) : "";
  field("loop").disabled = !region;
  const looped = region && field("loop").checked;
  player.repeat(looped ? { from: region.from / api.FRAMES_A_SECOND, to: Math.min(player.length, region.to / api.FRAMES_A_SECOND) } : undefined);
}
field("loop").onchange = showRegion;

/** Selects a region, in seconds; a missing end defaults to that of the curve. */
function choose(from: number | undefined, to: number | undefined): void {
  const last = timeline.curve?.length ?? 0, frame = (seconds: number): number => Math.min(last, Math.max(0, Math.round(seconds * api.FRAMES_A_SECOND)));
  const ends = [from === undefined ? 0 : frame(from), to === undefined ? last : frame(to)].sort((a, b) => a - b) as [number, number];
  timeline.region = ends[0] === ends[1] ? undefined : { from: ends[0], to: ends[1] };
  changed();
  say(timeline.region ? `Region from ${field("region-from").value} to ${field("region-to").value} s` : "No region: all of the curve");
}
for (const id of ["region-from", "region-to"]) {
  field(id).onchange = () => {
    const other = field(id === "region-from" ? "region-to" : "region-from");
    if (field("region-from").valueAsNumber >= field("region-to").valueAsNumber) other.value = ""; // defaults to the end, or the start, of the curve
    const [from, to] = ["region-from", "region-to"].map((end) => (field(end).value ? field(end).valueAsNumber : undefined));
    if (from !== undefined || to !== undefined) choose(from, to);
    else { timeline.region = undefined; changed(); }
  };
}

/** Seeks by `by` seconds and extends the region to the new position; starts a region if there is none. */
function stretch(by: number): void {
  const { region } = timeline, at = player.position, next = Math.min(player.length, Math.max(0, at + by));
  const frame = Math.round(at * api.FRAMES_A_SECOND);
  const fixed = !region ? at : (Math.abs(region.from - frame) < Math.abs(region.to - frame) ? region.to : region.from) / api.FRAMES_A_SECOND;
  player.seek(next);
  choose(fixed, next);
}

function edit(action: (curve: Curve) => void): () => void {
  return () => { if (timeline.curve && !element("edit").inert) { action(timeline.curve); changed(); } };
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
  points: () => tool("points"),
  select: () => tool("select"),
  "zoom-in": () => timeline.zoom(0.6),
  "zoom-out": () => timeline.zoom(1.6),
};
for (const [id, action] of Object.entries(actions)) element(id).onclick = action;

function tool(name: Tool): void {
  timeline.tool = name;
  for (const one of ["draw", "points", "select"]) element(one).setAttribute("aria-pressed", String(one === name));
  timeline.draw();
}

element<HTMLSelectElement>("shape").onchange = (event) => {
  const menu = event.target as HTMLSelectElement, kind = menu.value as Shape;
  menu.value = "";
  edit((curve) => curve.shape(timeline.chosen, kind, Math.max(0.1, loudest(curve.values))))();
};

/** Replaces the curve, in the region or everywhere, with the envelope of a sound. */
async function follow(file: Blob): Promise<void> {
  const found = await work("Listening to the sound", (signal, onProgress) => api.addRecording(file, onProgress, signal));
  if (found) edit((curve) => curve.replace(found.envelope, timeline.chosen))();
}
chosen("sound", (file) => void follow(file));

element("record").onclick = async () => {
  if (microphone.records) return microphone.stop();
  try {
    player.hear(undefined); // so that the microphone does not record the take
    player.seek(timeline.chosen.from / api.FRAMES_A_SECOND);
    const recorded = await microphone.record(() => {
      element("record").setAttribute("aria-pressed", "true");
      element("record").textContent = "Stop recording";
      void player.play();
    });
    player.pause();
    await follow(recorded);
  } catch (error) {
    player.pause();
    problem(error);
  } finally {
    element("record").setAttribute("aria-pressed", "false");
    element("record").textContent = "Record one";
    player.hear(takes.current?.sound);
  }
};

element("save").onclick = () => { if (timeline.curve) download(curveFile(timeline.curve.values), "curve.json"); };
chosen("load", (file) => {
  noProblem();
  readCurve(file).then((values) => edit((curve) => curve.replace(values))(), problem);
});

// ---- prompt and takes

function like(sound: typeof liked): void {
  liked = sound;
  element("liked").hidden = !sound;
  element("liked").querySelector("span")!.textContent = sound ? `like ${sound.name}` : "";
  field("text").disabled = Boolean(sound);
}
element("liked").querySelector("button")!.onclick = () => like(undefined);
chosen("like", async (file) => {
  const sound = new api.Sent<api.Recording>(file, file.name, api.addRecording);
  if (await work("Sending the sound", (signal, onProgress) => sound.arrive(signal, onProgress))) like(sound);
});

let profiles: Record<string, api.Settings> = {};
element<HTMLSelectElement>("profile").onchange = usual;
/** Fills in the defaults of the profile. */
function usual(): void {
  const { steps, guidance } = profiles[field("profile").value]!;
  field("steps").value = String(steps);
  field("guidance").value = String(guidance);
}

element<HTMLFormElement>("prompt").onsubmit = async (event) => {
  event.preventDefault();
  const { curve } = timeline, source = uploaded, sound = liked;
  if (!source?.answer || !curve) return;
  const request: api.TakeRequest = {
    envelope: Array.from(curve.values, (value) => Number(value.toFixed(6))), sample_count: source.answer.sample_count,
    text: sound ? "" : field("text").value, negative_text: field("negative").value, seed: field("seed").value, steps: field("steps").valueAsNumber,
    guidance: field("guidance").valueAsNumber, profile: field("profile").value, variations: field("variations").valueAsNumber,
  };
  const made = await work("Making sound", async (signal, onProgress) => {
    const make = (audio?: string): Promise<api.Take[]> => api.createTakes(audio ? { ...request, audio } : request, onProgress, signal);
    const done = await (sound ? sound.use(signal, (found) => make(found.recording)) : make());
    return Promise.all(done.map(async (take) => {
      const wav = await api.wav(take.take, signal);
      return { ...take, wav, sound: await player.decode(wav) };
    }));
  });
  if (!made || uploaded !== source) return;
  const kept = made.map(({ recipe, produced, wav, sound: heard }) =>
    takes.add({ video: source.name, request, recipe, produced, wav, sound: heard, ...(sound ? { like: sound.name } : {}) }));
  saved = false;
  player.seek(0);
  heard(kept[0]!);
};

/** Plays a take from the current position. */
function heard(kept: Kept): void {
  takes.hear(kept);
  if (!player.playing) void player.play();
}
takes.onPlay = heard;
takes.onHear = (kept) => {
  player.hear(kept?.sound);
  timeline.produced = kept?.produced;
  timeline.spectrogram = kept?.spectrogram;
  timeline.changed();
};
takes.onCurve = (kept) => edit((curve) => curve.replace(kept.request.envelope))();
takes.onVideo = async (kept) => {
  const source = uploaded;
  if (!source) return;
  const made = await work("Putting the sound into the video", (signal) =>
    source.use(signal, (found) => api.mux(found.video, kept.wav, element<HTMLSelectElement>("source-audio").value, signal)));
  if (made) download(made, `${kept.video.replace(/\.[^.]*$/, "")}-${kept.number}.mp4`);
};

// ---- playback

const toggle = (): void => (player.playing ? player.pause() : void player.play());
element("play").onclick = toggle;
hand.onScrub = (seconds) => player.seek(seconds);
player.onChange = () => { element("play").textContent = player.playing ? "Pause" : "Play"; };
player.onTime = (seconds) => {
  timeline.at(seconds);
  const value = timeline.curve?.values[Math.floor(seconds * api.FRAMES_A_SECOND)] ?? 0;
  element("clock").textContent = `${seconds.toFixed(2)} s, loudness ${value.toFixed(3)}`;
};

// ---- keys

const move = (seconds: number) => (): void => player.seek(player.position + seconds);
const keys: Keys = {
  " ": toggle, d: actions["draw"]!, p: actions["points"]!, r: actions["select"]!, "+": actions["louder"]!, "=": actions["louder"]!, "-": actions["softer"]!,
  Delete: actions["mute"]!, Backspace: actions["mute"]!, "Ctrl+z": actions["undo"]!, "Ctrl+Shift+z": actions["redo"]!, "Ctrl+y": actions["redo"]!,
  ArrowLeft: move(-STEP_S), ArrowRight: move(STEP_S), ",": move(-PICTURE_S), ".": move(PICTURE_S), Home: () => player.seek(0), End: () => player.seek(player.length),
  "Shift+ArrowLeft": () => stretch(-STEP_S), "Shift+ArrowRight": () => stretch(STEP_S),
  "[": () => choose(player.position, timeline.region && timeline.region.to / api.FRAMES_A_SECOND),
  "]": () => choose(timeline.region && timeline.region.from / api.FRAMES_A_SECOND, player.position),
  "Alt+ArrowLeft": actions["earlier"]!, "Alt+ArrowRight": actions["later"]!, i: actions["zoom-in"]!, o: actions["zoom-out"]!, x: () => takes.flip(),
  Escape: () => { if (timeline.region) { timeline.region = undefined; changed(); } else { stop(); } },
};
for (let number = 1; number <= 9; number++) keys[String(number)] = () => { const kept = takes.numbered(number); if (kept) takes.hear(kept); };
listen(Object.fromEntries(Object.entries(keys).map(([key, action]) => [key, () => { if (uploaded) action(); }])));
addEventListener("beforeunload", (event) => { if (!saved) event.preventDefault(); });

// ---- start

/** Sets the help, range, choices and default of a field. `begin` runs again after a login, so existing input is kept. */
function limit(input: HTMLInputElement | HTMLSelectElement, option: api.Option): void {
  input.title = option.help;
  if (input instanceof HTMLSelectElement) {
    input.replaceChildren(...option.choices.map((name) => new Option(name, name, name === option.default, name === option.default)));
  } else if (option.low !== null) {
    input.min = String(option.low);
    input.max = String(option.high);
    if (option.default !== null && !input.value) input.value = String(option.default);
  } else {
    input.maxLength = option.high!;
  }
}

function begin(): void {
  api.about().then((found) => {
    element("token").hidden = true;
    element("start").hidden = Boolean(uploaded);
    element("limits").textContent = `Up to ${found.max_duration_s} seconds; files stay on this server and are deleted when it stops.`;
    profiles = found.profiles;
    for (const input of document.querySelectorAll<HTMLInputElement | HTMLSelectElement>("[data-option]")) limit(input, found.options[input.dataset.option!]!);
    usual();
    element("examples").hidden = !found.examples.length;
    element("examples").querySelector("span")!.replaceChildren(...found.examples.map((name) => button(name.replace(/\.[^.]*$/, ""), () => void example(name))));
  }).catch((error) => {
    const closed = error instanceof api.ApiError && error.reason === "UNAUTHENTICATED";
    element("token").hidden = !closed;
    element("start").hidden = closed;
    if (!closed || element("token").querySelector("input")!.value) problem(error);
  });
}

async function example(name: string): Promise<void> {
  const file = await work("Opening the example", () => api.example(name));
  if (file) await open(file);
}

element<HTMLFormElement>("token").onsubmit = (event) => {
  event.preventDefault();
  noProblem();
  api.useToken(element("token").querySelector("input")!.value.trim());
  begin();
};
element("problem").querySelector("button")!.onclick = noProblem;
begin();
