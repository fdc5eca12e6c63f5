/** One time line: the video's frames, the curve over them, onsets, a region, and where playing is. */

import { FRAMES_A_SECOND } from "./api";
import { Curve, Region, clamp, onsets } from "./curve";

export type Tool = "draw" | "select";
const THUMBNAILS = 48, RULER = 18;

export class Timeline {
  curve?: Curve;
  produced?: ArrayLike<number>;
  tool: Tool = "draw";
  region?: Region;
  from = 0; // seconds at the left edge
  span = 10; // seconds shown
  top = 0.3; // RMS at the upper edge
  onChange = (): void => {};
  onSeek = (_seconds: number): void => {};
  private pictures: { seconds: number; picture: ImageBitmap }[] = [];
  private cursor = 0;
  private last?: { frame: number; value: number };
  private readonly context: CanvasRenderingContext2D;

  constructor(private readonly canvas: HTMLCanvasElement) {
    this.context = canvas.getContext("2d")!;
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", () => this.up());
    canvas.addEventListener("pointercancel", () => this.up());
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  get seconds(): number { return (this.curve?.length ?? 0) / FRAMES_A_SECOND; }

  /** The region, or all of it. */
  get chosen(): Region { return this.region ?? { from: 0, to: this.curve?.length ?? 0 }; }

  show(curve: Curve): void {
    this.curve = curve;
    this.region = this.produced = undefined;
    this.from = 0;
    this.span = this.seconds;
    this.top = Math.max(0.05, 1.25 * Math.max(...curve.values));
    this.draw();
  }

  at(seconds: number): void { this.cursor = seconds; this.draw(); }

  zoom(by: number, around = this.from + this.span / 2): void {
    const span = Math.min(this.seconds, Math.max(0.2, this.span * by));
    this.from = Math.min(Math.max(0, around - ((around - this.from) * span) / this.span), this.seconds - span);
    this.span = span;
    this.draw();
  }

  /** Pictures of the video along the line, made by the browser. */
  async thumbnails(address: string, seconds: number): Promise<void> {
    this.pictures = [];
    const video = document.createElement("video");
    video.muted = true;
    video.src = address;
    await new Promise((done, failed) => { video.onloadeddata = done; video.onerror = failed; });
    for (let i = 0; i < THUMBNAILS; i++) {
      video.currentTime = ((i + 0.5) / THUMBNAILS) * seconds;
      await new Promise((done) => { video.onseeked = done; });
      this.pictures.push({ seconds: video.currentTime, picture: await createImageBitmap(video, { resizeHeight: 96, resizeQuality: "medium" }) });
      this.draw();
    }
  }

  private x(seconds: number): number { return ((seconds - this.from) / this.span) * this.canvas.clientWidth; }
  private height(): number { return this.canvas.clientHeight - RULER; }
  private y(value: number): number { return RULER + this.height() * (1 - Math.min(1, value / this.top)); }

  private point(event: PointerEvent): { frame: number; value: number; seconds: number } {
    const box = this.canvas.getBoundingClientRect();
    const seconds = this.from + ((event.clientX - box.left) / box.width) * this.span;
    const value = clamp(this.top * (1 - (event.clientY - box.top - RULER) / this.height()));
    const frame = Math.min((this.curve?.length ?? 1) - 1, Math.max(0, Math.round(seconds * FRAMES_A_SECOND)));
    return { frame, value, seconds };
  }

  private down(event: PointerEvent): void {
    if (!this.curve) return;
    const point = this.point(event);
    const onRuler = event.clientY - this.canvas.getBoundingClientRect().top < RULER;
    if (onRuler) return this.onSeek(point.seconds);
    this.canvas.setPointerCapture(event.pointerId);
    this.last = point;
    if (this.tool === "draw") {
      this.curve.remember();
      this.curve.line(point.frame, point.value, point.frame, point.value);
    } else {
      this.region = undefined;
    }
    this.draw();
  }

  private move(event: PointerEvent): void {
    if (!this.curve || !this.last) return;
    const point = this.point(event);
    if (this.tool === "draw") {
      this.curve.line(this.last.frame, this.last.value, point.frame, point.value);
      this.last = point;
    } else if (point.frame !== this.last.frame) {
      this.region = { from: Math.min(point.frame, this.last.frame), to: Math.max(point.frame, this.last.frame) + 1 };
    }
    this.draw();
  }

  private up(): void {
    if (!this.last) return;
    this.last = undefined;
    this.onChange();
    this.draw();
  }

  private wheel(event: WheelEvent): void {
    if (!this.curve) return;
    event.preventDefault();
    const around = this.from + (event.offsetX / this.canvas.clientWidth) * this.span;
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      this.from = Math.min(Math.max(0, this.from + (this.span * (event.deltaX || event.deltaY)) / 1000), this.seconds - this.span);
      this.draw();
    } else {
      this.zoom(Math.exp(event.deltaY / 500), around);
    }
  }

  draw(): void {
    const { canvas, context, curve } = this;
    const scale = devicePixelRatio, width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = width * scale;
    canvas.height = height * scale;
    context.scale(scale, scale);
    const style = getComputedStyle(canvas), color = (name: string): string => style.getPropertyValue(name);
    context.clearRect(0, 0, width, height);
    if (!curve) return;
    context.globalAlpha = 0.35;
    const each = width / Math.max(1, Math.round(width / 110));
    for (let left = 0; left < width && this.pictures.length; left += each) {
      const middle = this.from + ((left + each / 2) / width) * this.span;
      const near = this.pictures.reduce((a, b) => (Math.abs(a.seconds - middle) < Math.abs(b.seconds - middle) ? a : b));
      const cut = Math.min(1, (each / this.height()) * (near.picture.height / near.picture.width));
      const shown = near.picture.width * cut;
      context.drawImage(near.picture, (near.picture.width - shown) / 2, 0, shown, near.picture.height, left, RULER, each, this.height());
    }
    context.globalAlpha = 1;
    if (this.region) {
      context.fillStyle = color("--region");
      const left = this.x(this.region.from / FRAMES_A_SECOND);
      context.fillRect(left, RULER, this.x(this.region.to / FRAMES_A_SECOND) - left, this.height());
    }
    this.ruler(color);
    context.strokeStyle = color("--onset");
    context.setLineDash([3, 4]);
    for (const frame of onsets(curve.values)) this.vertical(frame / FRAMES_A_SECOND);
    context.setLineDash([]);
    this.path(curve.predicted, color("--muted"), 1);
    if (this.produced) this.path(this.produced, color("--produced"), 1.5);
    this.path(curve.values, color("--curve"), 2.5);
    context.strokeStyle = color("--text");
    context.lineWidth = 1.5;
    this.vertical(this.cursor);
  }

  private vertical(seconds: number): void {
    const x = this.x(seconds);
    this.context.beginPath();
    this.context.moveTo(x, RULER);
    this.context.lineTo(x, RULER + this.height());
    this.context.stroke();
  }

  private ruler(color: (name: string) => string): void {
    const { context } = this;
    context.fillStyle = color("--text");
    context.font = "11px system-ui, sans-serif";
    const every = [0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30].find((step) => (step / this.span) * this.canvas.clientWidth > 55) ?? 60;
    for (let tick = Math.ceil(this.from / every) * every; tick <= this.from + this.span; tick += every) {
      context.fillText(`${Number(tick.toFixed(2))} s`, this.x(tick) + 3, 12);
      context.fillRect(this.x(tick), 0, 1, RULER);
    }
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
