/** The timeline: thumbnails of the video, the loudness curve, and the spectrogram of the current take. */

import { FRAMES_A_SECOND } from "./api";
import { Curve, Region, corners, loudest, onsets } from "./curve";
import { Picture } from "./filmstrip";
import { Spectrogram } from "./spectrogram";

export type Tool = "draw" | "points" | "select";
export interface Lane { top: number; height: number }
const RULER = 20, FILM = 54, SPECTRUM = 84, GAP = 4;
const HANDLE = 4; // radius of a point
const SHORTEST_S = 0.2; // span at the maximum zoom, seconds

export class Timeline {
  curve?: Curve;
  produced?: ArrayLike<number>; // measured loudness of the current take
  spectrogram?: Spectrogram;
  pictures: Picture[] = [];
  tool: Tool = "draw";
  region?: Region;
  from = 0; // seconds at the left edge
  span = 10; // seconds shown
  top = 0.3; // RMS at the upper edge of the curve's lane
  points: number[] = []; // frames of the draggable points
  private cursor = 0;
  private readonly context: CanvasRenderingContext2D;

  constructor(readonly canvas: HTMLCanvasElement) {
    this.context = canvas.getContext("2d")!;
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  get seconds(): number { return (this.curve?.length ?? 0) / FRAMES_A_SECOND; }

  /** The region, or the whole curve if there is none. */
  get chosen(): Region { return this.region ?? { from: 0, to: this.curve?.length ?? 0 }; }

  show(curve: Curve): void {
    this.curve = curve;
    this.region = this.produced = this.spectrogram = undefined;
    this.from = this.cursor = 0;
    this.span = this.seconds;
    this.top = 0.05;
    this.changed();
  }

  /** Updates the scale and the points after a change of the curve or of the current take. */
  changed(): void {
    const most = Math.max(loudest(this.curve?.values ?? []), loudest(this.produced ?? []));
    if (most > this.top || most < this.top / 4) this.top = Math.min(1, Math.max(0.05, 1.25 * most));
    this.points = this.curve ? corners(this.curve.values, 0.05 * this.top) : [];
    this.draw();
  }

  at(seconds: number): void {
    this.cursor = seconds;
    if (this.span < this.seconds && (seconds < this.from || seconds > this.from + this.span)) this.scroll(seconds - 0.1 * this.span);
    this.draw();
  }

  zoom(by: number, around = this.cursor): void {
    const share = Math.min(1, Math.max(0, (around - this.from) / this.span));
    this.span = Math.min(this.seconds, Math.max(SHORTEST_S, this.span * by));
    this.scroll(around - share * this.span);
  }

  /** Scrolls so that `from` (seconds) is at the left edge. */
  scroll(from: number): void {
    this.from = Math.min(Math.max(0, from), this.seconds - this.span);
    this.draw();
  }

  // ---- layout, in CSS pixels

  get width(): number { return this.canvas.clientWidth; }
  get film(): Lane { return { top: RULER, height: this.pictures.length ? FILM : 0 }; }
  get spectrum(): Lane {
    const height = this.spectrogram ? SPECTRUM : 0;
    return { top: this.canvas.clientHeight - height, height };
  }
  get lane(): Lane {
    const top = this.film.top + this.film.height + GAP;
    return { top, height: this.spectrum.top - (this.spectrogram ? GAP : 0) - top };
  }

  x(seconds: number): number { return ((seconds - this.from) / this.span) * this.width; }
  y(value: number): number { return this.lane.top + this.lane.height * (1 - Math.min(1, value / this.top)); }
  secondsAt(x: number): number { return this.from + (x / this.width) * this.span; }
  frameAt(x: number): number { return Math.min((this.curve?.length ?? 1) - 1, Math.max(0, Math.round(this.secondsAt(x) * FRAMES_A_SECOND))); }
  valueAt(y: number): number { return Math.min(this.top, Math.max(0, this.top * (1 - (y - this.lane.top) / this.lane.height))); }

  // ---- drawing

  draw(): void {
    const { canvas, context, curve, lane } = this;
    const scale = devicePixelRatio, height = canvas.clientHeight;
    canvas.width = this.width * scale;
    canvas.height = height * scale;
    context.scale(scale, scale);
    if (!curve || !this.width) return;
    const style = getComputedStyle(canvas), color = (name: string): string => style.getPropertyValue(`--${name}`);
    this.spectrumPicture(color);
    this.filmPictures();
    this.levels(color);
    if (this.region) {
      context.fillStyle = color("region");
      const left = this.x(this.region.from / FRAMES_A_SECOND);
      context.fillRect(left, RULER, this.x(this.region.to / FRAMES_A_SECOND) - left, height - RULER);
    }
    this.ruler(color);
    context.strokeStyle = color("onset");
    context.lineWidth = 1.5;
    context.setLineDash([3, 4]);
    for (const frame of onsets(curve.values)) this.vertical(frame / FRAMES_A_SECOND, lane.top, lane.top + lane.height);
    context.setLineDash([]);
    this.path(curve.predicted, color("muted"), 1);
    if (this.produced) this.path(this.produced, color("produced"), 1.5);
    this.path(curve.values, color("curve"), 2.5);
    if (this.tool === "points") this.handles(curve, color);
    context.strokeStyle = color("text");
    context.lineWidth = 1.5;
    this.vertical(this.cursor, 0, height);
  }

  private filmPictures(): void {
    const { pictures, film, context } = this, first = pictures[0]?.image;
    if (!first) return;
    const each = (film.height / first.height) * first.width;
    for (let left = 0; left < this.width; left += each) {
      const middle = this.secondsAt(left + each / 2);
      const near = pictures.reduce((a, b) => (Math.abs(a.seconds - middle) < Math.abs(b.seconds - middle) ? a : b));
      context.drawImage(near.image, left, film.top, each, film.height);
    }
  }

  /** Draws the spectrogram, whose opacity is level, and then colours it. */
  private spectrumPicture(color: (name: string) => string): void {
    if (!this.spectrogram) return;
    const { context, spectrum } = this, { picture, columnsASecond } = this.spectrogram;
    const left = this.from * columnsASecond, columns = this.span * columnsASecond;
    context.drawImage(picture, left + 0.5, 0, columns, picture.height, 0, spectrum.top, this.width, spectrum.height);
    context.globalCompositeOperation = "source-atop";
    context.fillStyle = color("produced");
    context.fillRect(0, spectrum.top, this.width, spectrum.height);
    context.globalCompositeOperation = "source-over";
    context.fillStyle = color("line");
    context.fillRect(0, spectrum.top - GAP / 2, this.width, 1);
    context.fillStyle = color("muted");
    context.font = "11px system-ui, sans-serif";
    context.fillText("8 kHz", 4, spectrum.top + 12);
  }

  private levels(color: (name: string) => string): void {
    const { context, lane } = this;
    const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5].find((each) => this.top / each <= 4.5) ?? 0.5;
    context.font = "11px system-ui, sans-serif";
    for (let level = step; level < this.top; level += step) {
      const y = Math.round(this.y(level)) + 0.5;
      context.fillStyle = color("line");
      context.fillRect(0, y, this.width, 1);
      context.fillStyle = color("muted");
      if (y > lane.top + 14) context.fillText(`${Number(level.toFixed(2))}`, 4, y - 3);
    }
  }

  private ruler(color: (name: string) => string): void {
    const { context } = this;
    context.fillStyle = color("text");
    context.font = "11px system-ui, sans-serif";
    const every = [0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30].find((step) => (step / this.span) * this.width > 55) ?? 60;
    for (let tick = Math.ceil(this.from / every - 1e-6) * every; tick <= this.from + this.span; tick += every) {
      context.fillText(`${Number(tick.toFixed(2))} s`, this.x(tick) + 3, 13);
      context.fillRect(this.x(tick), 0, 1, RULER - 2);
    }
  }

  private handles(curve: Curve, color: (name: string) => string): void {
    const { context } = this;
    context.fillStyle = color("back");
    context.strokeStyle = color("curve");
    context.lineWidth = 2;
    for (const frame of this.points) {
      context.beginPath();
      context.arc(this.x(frame / FRAMES_A_SECOND), this.y(curve.values[frame]!), HANDLE, 0, 2 * Math.PI);
      context.fill();
      context.stroke();
    }
  }

  private vertical(seconds: number, from: number, to: number): void {
    const x = this.x(seconds);
    this.context.beginPath();
    this.context.moveTo(x, from);
    this.context.lineTo(x, to);
    this.context.stroke();
  }

  private path(values: ArrayLike<number>, color: string, width: number): void {
    const { context } = this;
    context.beginPath();
    const first = Math.max(0, Math.floor(this.from * FRAMES_A_SECOND) - 1);
    const last = Math.min(values.length - 1, Math.ceil((this.from + this.span) * FRAMES_A_SECOND) + 1);
    for (let frame = first; frame <= last; frame++) context.lineTo(this.x(frame / FRAMES_A_SECOND), this.y(values[frame]!));
    context.strokeStyle = color;
    context.lineWidth = width;
    context.lineJoin = "round";
    context.stroke();
  }
}
