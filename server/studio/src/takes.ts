/** The list of takes, one of them current, each with everything needed to reproduce it. */

import * as api from "./api";
import { loudest } from "./curve";
import { curveFile } from "./curve_file";
import { button, download, element, json, say } from "./page";
import { Spectrogram, spectrogram } from "./spectrogram";

export interface Kept {
  number: number;
  video: string; // file name
  request: api.TakeRequest;
  like?: string; // name of the audio prompt
  recipe: Record<string, unknown>;
  produced: number[];
  wav: Blob;
  sound: AudioBuffer;
  spectrogram: Spectrogram;
}

export class Takes {
  current?: Kept;
  onHear = (_kept: Kept | undefined): void => {};
  onPlay = (_kept: Kept): void => {};
  onCurve = (_kept: Kept): void => {};
  onVideo = (_kept: Kept): void => {};
  private all: Kept[] = [];
  private before?: Kept; // the previous current take
  private made = 0;

  constructor(private readonly list: HTMLElement, private readonly none: HTMLElement) {
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.show());
  }

  get count(): number { return this.all.length; }

  add(kept: Omit<Kept, "number" | "spectrogram">): Kept {
    const take = { ...kept, number: ++this.made, spectrogram: spectrogram(kept.sound.getChannelData(0)) };
    this.all.unshift(take);
    return take;
  }

  clear(): void {
    this.all = [];
    this.before = undefined;
    this.made = 0;
    this.hear(undefined);
  }

  numbered(number: number): Kept | undefined { return this.all.find((kept) => kept.number === number); }

  hear(kept: Kept | undefined): void {
    if (kept !== this.current) this.before = this.current;
    this.current = kept;
    this.onHear(kept);
    this.show();
  }

  /** A/B comparison: switches to the previous take. */
  flip(): void { if (this.before) this.hear(this.before); }

  private remove(kept: Kept): void {
    this.all = this.all.filter((other) => other !== kept);
    if (this.before === kept) this.before = undefined;
    if (this.current === kept) { this.current = undefined; this.hear(this.all[0]); }
    this.show();
    say(`Take ${kept.number} was removed.`);
  }

  private show(): void {
    const focused = (document.activeElement as HTMLElement | null)?.dataset["key"];
    this.none.hidden = this.all.length > 0;
    this.list.replaceChildren(...this.all.map((kept) => this.item(kept)));
    if (focused) this.list.querySelector<HTMLElement>(`[data-key="${focused}"]`)?.focus();
    this.all.forEach((kept, i) => sketch(this.list.children[i]!.querySelector("canvas")!, kept));
  }

  private item(kept: Kept): HTMLLIElement {
    const item = document.createElement("li"), take = `take ${kept.number}`;
    if (kept === this.current) item.setAttribute("aria-current", "true");
    const what = document.createElement("p"), about = document.createElement("small");
    what.textContent = `${kept.number}. ${kept.request.text || (kept.like ? `like ${kept.like}` : "anything")}`;
    about.textContent = `seed ${kept.recipe["seed"]}, ${kept.recipe["steps"]} steps, guidance ${kept.recipe["guidance"]}, ${kept.request.profile}`;
    const curves = document.createElement("canvas");
    curves.setAttribute("role", "img");
    curves.setAttribute("aria-label", "Requested and produced curve");
    const row = document.createElement("div");
    row.className = "row";
    const stem = `${kept.video.replace(/\.[^.]*$/, "")}-${kept.number}`;
    row.append(
      button("Listen", () => this.onPlay(kept), `Listen to ${take}`),
      button("WAV", () => download(kept.wav, `${stem}.wav`), `WAV of ${take}`),
      button("Video", () => this.onVideo(kept), `Video with ${take}`),
      button("Recipe", () => download(json({ ...kept.recipe, envelope: kept.request.envelope }), `${stem}.json`), `Recipe of ${take}`),
      button("Command", () => command(kept, stem), `Command line of ${take}`),
      button("Curve", () => this.onCurve(kept), `Curve of ${take}`),
      button("×", () => this.remove(kept), `Remove ${take}`),
    );
    row.querySelectorAll("button").forEach((made, i) => { made.dataset["key"] = `${kept.number}-${i}`; });
    item.append(what, about, curves, row);
    return item;
  }
}

/** Draws the measured loudness of a take, and the requested curve over it. */
function sketch(canvas: HTMLCanvasElement, kept: Kept): void {
  const context = canvas.getContext("2d")!, style = getComputedStyle(canvas);
  const width = (canvas.width = canvas.clientWidth * devicePixelRatio), height = (canvas.height = canvas.clientHeight * devicePixelRatio);
  const { envelope } = kept.request, top = 1.05 * Math.max(0.01, loudest(envelope), loudest(kept.produced));
  const path = (values: number[], color: string): void => {
    context.beginPath();
    values.forEach((value, frame) => context.lineTo((frame / values.length) * width, height * (1 - value / top) - 1));
    context.strokeStyle = style.getPropertyValue(color);
    context.lineWidth = 1.25 * devicePixelRatio;
    context.stroke();
  };
  path(kept.produced, "--produced");
  path(envelope, "--curve");
}

/** Shows the command line that reproduces a take, and offers its curve file. */
function command(kept: Kept, stem: string): void {
  const { request } = kept, quoted = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`, curve = `${stem}-curve.json`;
  const own = element<HTMLSelectElement>("source-audio").value;
  const line = ["foley", "generate", quoted(kept.video), "--envelope", quoted(curve), ...(kept.like ? ["--audio", quoted(kept.like)] : ["--text", quoted(request.text)]),
    ...(request.negative_text ? ["--negative-text", quoted(request.negative_text)] : []), "--seed", String(kept.recipe["seed"]), "--steps", String(kept.recipe["steps"]),
    "--guidance", String(kept.recipe["guidance"]), "--profile", request.profile, ...(own === "replace" ? [] : ["--source-audio", own]), "-o", quoted(`${stem}.mp4`)].join(" ");
  const dialog = element<HTMLDialogElement>("command");
  dialog.querySelector("pre")!.textContent = line;
  element("copy").onclick = () => navigator.clipboard?.writeText(line).then(() => { element("copy").textContent = "Copied"; }, () => undefined);
  element("copy").textContent = "Copy";
  element("save-curve").textContent = `Save ${curve}`;
  element("save-curve").onclick = () => download(curveFile(request.envelope), curve);
  dialog.showModal();
}
