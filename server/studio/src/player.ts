/** Synchronous playback of sound and picture. The audio clock, corrected for output latency, is the reference for the picture. */

import { SAMPLE_RATE } from "./api";

const FADE_S = 0.006, LARGE_DRIFT_S = 0.25, SMALL_DRIFT_S = 0.02;

export interface Span { from: number; to: number } // seconds

export class Player {
  length = 0; // seconds
  playing = false;
  onChange = (): void => {};
  onTime = (_seconds: number): void => {};
  private readonly context = new AudioContext({ sampleRate: SAMPLE_RATE });
  private sound?: AudioBuffer;
  private loop?: Span;
  private voice?: { source: AudioBufferSourceNode; gain: GainNode };
  private from = 0; // start position while playing, else the current position; seconds
  private began = 0; // start time on the clock of the audio context; seconds

  constructor(private readonly picture: HTMLVideoElement) { requestAnimationFrame(() => this.follow()); }

  decode(wav: Blob): Promise<AudioBuffer> { return wav.arrayBuffer().then((bytes) => this.context.decodeAudioData(bytes)); }

  /** The audible position, in seconds of the video. */
  get position(): number {
    if (!this.playing) return this.from;
    const at = this.from + Math.max(0, this.context.currentTime - this.began - (this.context.outputLatency || 0));
    if (!this.loop || at < this.loop.to) return at;
    return this.loop.from + ((at - this.loop.to) % (this.loop.to - this.loop.from));
  }

  /** Sets the sound; during playback, crossfades from the previous one. */
  hear(sound: AudioBuffer | undefined): void { this.sound = sound; this.again(); }

  /** Sets the loop; `undefined` plays to the end. */
  repeat(loop: Span | undefined): void {
    if (loop?.from === this.loop?.from && loop?.to === this.loop?.to) return;
    const at = this.position;
    this.loop = loop;
    this.again(loop && at >= loop.to ? loop.from : at);
  }

  async play(): Promise<void> {
    if (!this.length) return;
    await this.context.resume();
    const start = this.loop && (this.from < this.loop.from || this.from >= this.loop.to) ? this.loop.from : this.from >= this.length - 0.01 ? 0 : this.from;
    this.playing = true;
    this.again(start);
    this.onChange();
  }

  pause(): void {
    this.from = this.position;
    this.playing = false;
    this.silence();
    this.picture.pause();
    this.onChange();
  }

  seek(seconds: number): void {
    this.from = Math.min(Math.max(0, seconds), this.length);
    this.picture.currentTime = this.from;
    this.again(this.from);
    this.onTime(this.from);
  }

  private again(at = this.position): void {
    this.silence();
    this.from = at;
    this.began = this.context.currentTime;
    if (!this.playing || !this.sound) return;
    const source = new AudioBufferSourceNode(this.context, { buffer: this.sound, loop: Boolean(this.loop) });
    if (this.loop) { source.loopStart = this.loop.from; source.loopEnd = this.loop.to; }
    const gain = new GainNode(this.context, { gain: 0 });
    gain.gain.linearRampToValueAtTime(1, this.began + FADE_S);
    source.connect(gain).connect(this.context.destination);
    source.start(0, at);
    this.voice = { source, gain };
  }

  private silence(): void {
    if (!this.voice) return;
    this.voice.gain.gain.setTargetAtTime(0, this.context.currentTime, FADE_S / 3);
    this.voice.source.stop(this.context.currentTime + 3 * FADE_S);
    this.voice = undefined;
  }

  private follow(): void {
    requestAnimationFrame(() => this.follow());
    if (!this.playing) return;
    const at = this.position, drift = at - this.picture.currentTime;
    if (at >= this.length) {
      this.pause();
      this.from = this.length;
    } else if (this.picture.readyState && !this.picture.ended && !this.picture.seeking) {
      if (this.picture.paused) void this.picture.play().catch(() => undefined);
      if (Math.abs(drift) > LARGE_DRIFT_S) this.picture.currentTime = at;
      this.picture.playbackRate = Math.abs(drift) > SMALL_DRIFT_S ? 1 + Math.min(0.1, Math.max(-0.1, drift)) : 1;
    }
    this.onTime(this.position);
  }
}
