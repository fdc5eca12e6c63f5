/** Pointer input on the timeline (mouse, pen, touch): draws, drags points, selects a region, scrubs and zooms. */

import { FRAMES_A_SECOND } from "./api";
import { Timeline } from "./timeline";

interface Spot { x: number; y: number }
interface Grip { points: [number, number, number]; before: Float32Array } // frames of the left neighbour, the dragged point and the right neighbour
const REACH = 10, FINGER_REACH = 24; // hit radius of a point, pixels

export class Hand {
  onChange = (): void => {};
  onScrub = (_seconds: number): void => {};
  private readonly fingers = new Map<number, Spot>();
  private doing?: { move(spot: Spot): void; undo?: () => void };

  constructor(private readonly timeline: Timeline) {
    const { canvas } = timeline;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("pointercancel", (event) => this.up(event));
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  private spot(event: MouseEvent): Spot {
    const box = this.timeline.canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  private down(event: PointerEvent): void {
    const { timeline } = this, spot = this.spot(event);
    if (!timeline.curve || event.button) return;
    timeline.canvas.setPointerCapture(event.pointerId);
    this.fingers.set(event.pointerId, spot);
    if (this.fingers.size === 2) {
      this.doing?.undo?.();
      this.doing = this.pinch();
    } else if (this.fingers.size === 1) {
      this.doing = spot.y < timeline.lane.top || spot.y > timeline.lane.top + timeline.lane.height ? this.scrub(spot) :
        { draw: () => this.draw(spot), points: () => this.point(spot, event.pointerType === "touch" ? FINGER_REACH : REACH), select: () => this.select(spot) }[timeline.tool]();
    }
  }

  private move(event: PointerEvent): void {
    if (!this.fingers.has(event.pointerId)) return;
    const spot = this.spot(event);
    this.fingers.set(event.pointerId, spot);
    this.doing?.move(spot);
    this.timeline.draw();
  }

  private up(event: PointerEvent): void {
    if (!this.fingers.delete(event.pointerId) || !this.doing) return;
    this.doing = undefined;
    this.onChange();
  }

  private scrub(start: Spot): { move(spot: Spot): void } {
    const move = (spot: Spot): void => this.onScrub(this.timeline.secondsAt(spot.x));
    move(start);
    return { move };
  }

  private draw(start: Spot): { move(spot: Spot): void; undo: () => void } {
    const { timeline } = this, curve = timeline.curve!;
    let last = start;
    curve.remember();
    const move = (spot: Spot): void => {
      curve.line(timeline.frameAt(last.x), timeline.valueAt(last.y), timeline.frameAt(spot.x), timeline.valueAt(spot.y));
      last = spot;
    };
    move(start);
    return { move, undo: () => curve.forget() };
  }

  private select(start: Spot): { move(spot: Spot): void } {
    const { timeline } = this, first = timeline.frameAt(start.x);
    timeline.region = undefined;
    return { move: (spot) => {
      const last = timeline.frameAt(spot.x);
      timeline.region = first === last ? undefined : { from: Math.min(first, last), to: Math.max(first, last) + 1 };
    } };
  }

  /** Drags the nearest point within reach, or adds a point on the curve. */
  private point(start: Spot, reach: number): { move(spot: Spot): void; undo: () => void } | undefined {
    const { timeline } = this, curve = timeline.curve!;
    const far = (frame: number): number => Math.hypot(timeline.x(frame / FRAMES_A_SECOND) - start.x, timeline.y(curve.values[frame]!) - start.y);
    let at = timeline.points.reduce((a, b) => (far(a) < far(b) ? a : b));
    if (far(at) > reach) {
      at = timeline.frameAt(start.x);
      if (far(at) > reach) return undefined;
      timeline.points = [...new Set([...timeline.points, at])].sort((a, b) => a - b);
    }
    const i = timeline.points.indexOf(at);
    const grip: Grip = { points: [timeline.points[i - 1] ?? at, at, timeline.points[i + 1] ?? at], before: curve.values.slice() };
    const [left, , right] = grip.points;
    curve.remember();
    return {
      move: (spot) => {
        const to = left === at || right === at ? at : Math.min(right - 1, Math.max(left + 1, timeline.frameAt(spot.x)));
        curve.bend(grip.before, grip.points, to, timeline.valueAt(spot.y));
        timeline.points[i] = to;
      },
      undo: () => curve.forget(),
    };
  }

  /** Pinch zoom: the times under the two fingers stay under them. */
  private pinch(): { move(): void } {
    const { timeline } = this;
    const ends = (): [number, number] => { const [a, b] = [...this.fingers.values()].map((spot) => spot.x).sort((p, q) => p - q); return [a!, b!]; };
    const [left, right] = ends().map((x) => timeline.secondsAt(x)) as [number, number];
    return { move: () => {
      const [a, b] = ends();
      if (b - a < 10) return;
      timeline.zoom(((right - left) / (b - a)) * timeline.width / timeline.span);
      timeline.scroll(left - (a / timeline.width) * timeline.span);
    } };
  }

  private wheel(event: WheelEvent): void {
    const { timeline } = this;
    if (!timeline.curve) return;
    event.preventDefault();
    const sideways = Math.abs(event.deltaX) > Math.abs(event.deltaY);
    if (event.shiftKey || sideways) timeline.scroll(timeline.from + ((sideways ? event.deltaX : event.deltaY) * timeline.span) / 1000);
    else timeline.zoom(Math.exp(event.deltaY / 500), timeline.secondsAt(this.spot(event).x));
  }
}
